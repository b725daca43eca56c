"""Naming: whether reports name the right stage and cause, of subjects that causes were not tuned on.

The command is `python -m verify faults --diagnosis`. What counts is what a reader reads first: the stage and
the first cause of the failure that is told first.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

import msgspec

from properties.case import encode
from properties.diagnosis.diagnose import classes_of, classes_of_convention
from verify import errors
from verify.config import Policy
from verify.engine.campaign import Campaign
from verify.engine.examiner import Examiner
from verify.environment import cores, one_line
from verify.errors import UsageError
from verify.faults.apart_cards import ApartCard, apart_cards
from verify.measure.diagnosis.naming_page import Named, line, page, totals
from verify.measure.power.fault_campaign import Watch
from verify.measure.power.outcome import Broken, Done, NamedOutcome
from verify.measure.power.process_pool import ProcessPool
from verify.measure.power.work_units import ApartUnit, Effort
from verify.report.stamp import of_apart, stamped

CASES = 200
"""Cases a subject: of 500, as `run` judges, the later ones rarely change what is told."""
STAGE_TARGET = 0.9
"""Share of subjects whose true stage must be named."""
WRONG_TARGET = 0.03
"""Share of subjects for which a wrong cause may be named first."""


def judge_apart(
    unit: ApartUnit, examiner: Examiner, *, beat: Callable[[], None] = lambda: None
) -> NamedOutcome:
    """Return what the report on a subject apart names.

    Args:
        unit: The subject, the seed and the budget.
        examiner: Makes trials of it.
        beat: Called with each event.
    """
    effort = unit.effort
    campaign = Campaign(
        examiner=examiner,
        budget=effort.budget,
        seed=unit.seed,
        emit=Watch(beat=beat).handle,
        policy=Policy(tries=effort.tries, tries_total=effort.tries_total),
    )
    result = campaign.run()
    accounting = result.accounting
    judged = NamedOutcome(
        subject=unit.card.id,
        seed=unit.seed,
        drawn=accounting.cases,
        seconds=result.seconds,
        internal=accounting.internal,
    )
    if not result.failures:
        return judged
    first = result.failures[0]
    causes = first.resembles
    classes = classes_of_convention(first.convention) if first.convention else ()
    return msgspec.structs.replace(
        judged,
        properties=tuple(dict.fromkeys(failure.property for failure in result.failures)),
        stage=first.stage,
        causes=causes,
        classes=classes or (classes_of(causes[0]) if causes else ()),
        convention=bool(first.convention),
        case=encode(first.case).decode(),
    )


def named(card: ApartCard, outcome: NamedOutcome) -> Named:
    """Return how an outcome compares with what is true of the subject."""
    cause: Literal["right", "wrong", "none"] = "none"
    if outcome.causes or outcome.convention:
        cause = "right" if set(card.classes) & set(outcome.classes) else "wrong"
    return Named(card=card, outcome=outcome, stage=outcome.stage == card.stage, cause=cause)


@dataclass(slots=True)
class Naming:
    """What was named of all subjects.

    Attributes:
        cards: All that are to be judged.
        found: What was found of those that were.
        broken: Titles and reasons of those that our own machinery failed on.
    """

    cards: tuple[ApartCard, ...]
    found: list[Named] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether every subject was judged and caught, and the newest set meets both targets.

        Stages and causes have been tuned on those before it.
        """
        newest = max((card.set for card in self.cards), default=0)
        apart = [one for one in self.found if one.card.set == newest]
        return (
            len(self.found) == len(self.cards)
            and all(one.outcome.properties for one in self.found)
            and sum(one.stage for one in apart) >= STAGE_TARGET * len(apart)
            and sum(one.cause == "wrong" for one in apart) <= WRONG_TARGET * len(apart)
        )

    def totals(self) -> list[str]:
        """Return what was found in each set, with the targets, in sentences."""
        return [
            sentence
            for number in sorted({card.set for card in self.cards})
            for sentence in totals(
                [one for one in self.found if one.card.set == number],
                number,
                of=sum(card.set == number for card in self.cards),
                stage=STAGE_TARGET,
                wrong=WRONG_TARGET,
            )
        ]

    @property
    def exit_code(self) -> int:
        """0 if the targets are met."""
        if self.broken or any(one.outcome.internal for one in self.found):
            return errors.INTERNAL
        return errors.OK if self.met else errors.NOT_MET


def diagnosis_command(arguments: Namespace) -> int:
    """Do `python -m verify faults --diagnosis` and return its exit code.

    Raises:
        UsageError: If it names no subject.
    """
    cards = _chosen(arguments.names)
    effort = Effort(cases=arguments.cases or CASES, seconds=arguments.seconds)
    units = tuple(ApartUnit(card=card, seed=1, effort=effort) for card in cards)
    workers = max(1, min(arguments.workers or cores(), len(units)))
    sys.stdout.write(f"{one_line(device='cpu', backend='gloo')}; {len(cards)} subjects apart\n")
    naming = Naming(cards)
    try:
        with ProcessPool(workers) as crew:
            tell(naming, crew.work(units), sys.stdout)
    finally:
        for text in naming.totals():
            sys.stdout.write(f"{text}\n")
        if arguments.json:
            Path(arguments.json).write_bytes(msgspec.json.format(msgspec.json.encode(naming.found)) + b"\n")
        if arguments.table:
            text = page(
                naming.found,
                command="python -m verify faults --diagnosis --table docs/diagnosis.md",
                environment=one_line(device="cpu", backend="gloo").partition(": ")[2],
                totals=naming.totals(),
            )
            Path(arguments.table).write_text(stamped(text, of_apart()), "utf-8")
    return naming.exit_code


def tell(naming: Naming, done: Iterable[Done], stream: TextIO) -> None:
    """Take what is done, and tell it one by one."""
    for one in done:
        assert isinstance(one.unit, ApartUnit)
        if isinstance(one.outcome, Broken):
            naming.broken.append((one.unit.title, one.outcome.reason))
            stream.write(f"{one.unit.title}: our own machinery failed: {one.outcome.reason}\n")
        else:
            assert isinstance(one.outcome, NamedOutcome)
            naming.found.append(named(one.unit.card, one.outcome))
            stream.write(f"{line(naming.found[-1])}\n")
        stream.flush()


def _chosen(names: Sequence[str]) -> tuple[ApartCard, ...]:
    cards = apart_cards()
    known = {card.id for card in cards} | {card.module for card in cards}
    if unknown := sorted(set(names) - known):
        raise UsageError(f"Expected ids or modules of subjects apart, but got {', '.join(unknown)}.")
    return tuple(card for card in cards if not names or {card.id, card.module} & set(names))

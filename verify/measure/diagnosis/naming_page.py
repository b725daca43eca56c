"""What was named of the subjects apart, in lines for the terminal and on the page `docs/diagnosis.md`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from verify.faults.apart_cards import ApartCard
from verify.measure.power.outcome import NamedOutcome


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """One subject, with what its report names.

    Attributes:
        stage: The true stage is named.
        cause: Whether the cause that is named first is of a class that is true of it, if any is named.
    """

    card: ApartCard
    outcome: NamedOutcome
    stage: bool
    cause: Literal["right", "wrong", "none"]


def line(one: Named) -> str:
    """Return the line of one subject."""
    outcome = one.outcome
    if not outcome.properties:
        return f"{one.card.id:<38} NOT CAUGHT in {outcome.drawn} cases"
    stage = outcome.stage or "-"
    stage += "" if one.stage else f" (not {one.card.stage})"
    return f"{one.card.id:<38} {stage:<42} {one.cause:<6} {_cause(outcome)}"


def totals(found: Sequence[Named], number: int, *, of: int, stage: float, wrong: float) -> list[str]:
    """Return what was found in the set of that number, with the targets."""
    if not found:
        return [f"set {number}: 0 of {of} subjects judged"]
    caught = sum(bool(one.outcome.properties) for one in found)
    stages = sum(one.stage for one in found)
    causes = {name: sum(one.cause == name for one in found) for name in ("right", "wrong", "none")}
    sentences = (
        f"{len(found)} of {of} subjects judged, {caught} caught",
        f"the stage that is wrong first is named rightly for {stages} ({stages / len(found):.1%}; "
        f"target {stage:.0%})",
        f"the cause named first is right for {causes['right']} ({causes['right'] / len(found):.1%}), wrong "
        f"for {causes['wrong']} ({causes['wrong'] / len(found):.1%}; target at most {wrong:.0%}), and none "
        f"is named for {causes['none']}",
    )
    return [f"set {number}: {sentence}" for sentence in sentences]


def page(found: Sequence[Named], *, command: str, environment: str, totals: Sequence[str]) -> str:
    """Return the whole page, without its stamp.

    Args:
        found: By subject.
        command: The line that made it.
        environment: Versions and machine, in one line.
        totals: Sentences on all.
    """
    return "\n".join(_lines(found, command=command, environment=environment, totals=totals)) + "\n"


def _lines(found: Sequence[Named], *, command: str, environment: str, totals: Sequence[str]) -> Iterator[str]:
    yield "# The diagnosis, on subjects apart"
    yield ""
    yield f"Made by `{command}`; do not edit."
    yield ""
    yield f"{environment}."
    yield ""
    yield "Subjects as people write them, each with one fault (`verify/faults/apart`). Looked at is what a"
    yield "reader reads first: the stage and the first cause of the failure that is told first. A cause is"
    yield "right if a class of it describes the fault."
    yield ""
    yield "A set tells of others only when it is measured for the first time. Set 1: 52 of 60 stages, 27"
    yield "causes right, none wrong. Set 2, by somebody who had read neither diagnosis nor catalogue: 44 of"
    yield "60 stages, 39 causes right, 5 wrong. Set 3, by somebody else who had not: 45 of 60 stages, 29"
    yield "causes right, 3 wrong. What a set showed was mended after its first measurement. Below is how it"
    yield "is now."
    yield ""
    for sentence in totals:
        yield f"- {sentence[0].upper()}{sentence[1:]}."
    for module in dict.fromkeys(one.card.module for one in _ordered(found)):
        yield ""
        yield f"## {module}"
        yield ""
        yield "| subject | what is wrong | stage | said to be | cause named first | which is | case |"
        yield "|---|---|---|---|---|---|---|"
        for one in _ordered(found):
            if one.card.module == module:
                yield _row(one)


def _ordered(found: Sequence[Named]) -> list[Named]:
    return sorted(found, key=lambda one: (one.card.module, one.card.id))


def _row(one: Named) -> str:
    card, outcome = one.card, one.outcome
    cells = (
        f"`{card.id}`",
        card.wrong,
        card.stage,
        (outcome.stage or "-") if one.stage else f"**{outcome.stage or '-'}**",
        _cause(outcome),
        "**wrong**" if one.cause == "wrong" else "-" if one.cause == "none" else one.cause,
        f"`{outcome.case}`" if outcome.case else "not caught",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cause(outcome: NamedOutcome) -> str:
    if outcome.convention:
        return "a convention"
    return outcome.causes[0] if outcome.causes else "-"

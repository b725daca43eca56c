"""Judging one unit: a campaign over its subject, of which only what the catalogue asks for is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from properties.case import encode
from properties.judge.catalogue import PROPERTIES
from properties.verdict import Outcome as Said
from properties.verdict import Verdict
from verify.config import Budget, Policy
from verify.engine.campaign import Campaign
from verify.engine.examiner import Examiner
from verify.engine.simplify import weight
from verify.events import (
    CampaignEnded,
    CampaignStarted,
    CaseDrawn,
    CaseEnded,
    Event,
    FailureFound,
    FailureMinimised,
)
from verify.measure.power.outcome import Accusation, Cell, FaultOutcome, RightOutcome, Smallest
from verify.measure.power.work_units import Effort, FaultUnit, RightUnit
from verify.record.recall import Place
from verify.result import Failure, SubjectResult
from verify.strict_json import plain
from verify.trial import Trial

Clock = Callable[[], float]
RIGHT_POLICY = Policy(tries=250, tries_total=500)


@dataclass(slots=True, kw_only=True)
class Watch:
    """Listens to a campaign: when its first failure was found, and how long minimising took.

    Attributes:
        beat: Called with each event, so that who waits knows that it goes on.
    """

    clock: Clock = time.monotonic
    beat: Callable[[], None] = lambda: None
    drawn: int = 0
    accused: int = 0
    found: tuple[int, float] | None = None
    minimising: float = 0.0
    _began: float = 0.0
    _pause: float | None = None

    def handle(self, event: Event) -> None:
        """Take one event."""
        self.beat()
        now = self.clock()
        if isinstance(event, CampaignStarted):
            self._began = now
        elif isinstance(event, CaseEnded):
            self.drawn += 1
            if event.outcome is Said.VIOLATED:
                self.accused += 1
                self.found = self.found or (self.drawn, now - self._began)
        elif isinstance(event, FailureFound | FailureMinimised):
            self.found = self.found or (self.drawn, now - self._began)
            self._pause = now if self._pause is None else self._pause
        elif isinstance(event, CaseDrawn | CampaignEnded) and self._pause is not None:
            self.minimising += now - self._pause
            self._pause = None


def judge_fault(
    unit: FaultUnit,
    examiner: Examiner,
    *,
    clock: Clock = time.monotonic,
    beat: Callable[[], None] = lambda: None,
) -> FaultOutcome:
    """Return what a campaign finds out about a fault; it ends once all of its `caught_by` are violated.

    Args:
        unit: The fault, the seed and the budget.
        examiner: Makes trials of the fault's subject.
        clock: Monotonic seconds.
        beat: Called with each event.
    """
    card, effort = unit.card, unit.effort
    examiner = _diagnosing(examiner, effort)
    watch = Watch(clock=clock, beat=beat)
    campaign = Campaign(
        examiner=examiner,
        budget=effort.budget,
        seed=unit.seed,
        emit=watch.handle,
        policy=Policy(
            tries=effort.tries,
            tries_total=effort.tries_total,
            stop_after_violating=frozenset(card.caught_by),
        ),
        clock=clock,
    )
    result = campaign.run()
    violated = campaign.tally.violated | {failure.property for failure in result.failures}
    causes = tuple(dict.fromkeys(name for failure in result.failures for name in failure.resembles))
    cases, seconds = watch.found or (0, 0.0)
    return FaultOutcome(
        fault=card.id,
        seed=unit.seed,
        properties=tuple(name for name in PROPERTIES if name in violated),
        lacking=tuple(name for name in card.caught_by if name not in violated),
        cases=cases,
        seconds=seconds,
        drawn=result.accounting.cases,
        total_seconds=result.seconds,
        minimising_seconds=watch.minimising,
        smallest=smallest(result),
        causes=causes,
        classes=_classes_of(causes, examiner.parts.diagnoses),
        diagnosed=examiner.parts.diagnoses is not None,
        internal=result.accounting.internal,
        stopped=result.stopped,
    )


def smallest(result: SubjectResult) -> Smallest | None:
    """Return the smallest case of a result's failures; None if it has none."""
    if not result.failures:
        return None
    failure: Failure = min(result.failures, key=lambda failure: weight(failure.case))
    case = failure.case
    text = encode(case).decode()
    return Smallest(
        violates=failure.property,
        ranks=case.world_size,
        channels=case.channels,
        values=sum(case.count_of(rank) for rank in range(case.world_size)),
        size=len(text),
        complete=failure.minimised,
        case=text,
    )


def _diagnosing(examiner: Examiner, effort: Effort) -> Examiner:
    """Return `examiner`, without the diagnosis if the effort leaves it out."""
    return examiner if effort.diagnose else replace(examiner, parts=replace(examiner.parts, diagnoses=None))


def _classes_of(causes: tuple[str, ...], diagnoses: Any) -> tuple[int, ...]:
    """Return the fault classes to which these causes belong, in order."""
    return tuple(sorted({number for cause in causes for number in diagnoses.classes_of(cause)}))


@dataclass(slots=True)
class _Cells:
    """Counts verdicts by dtype and property; each case once."""

    counts: dict[tuple[str, str], Cell] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def keep(self, trial: Trial) -> None:
        """Count one trial."""
        if trial.case.id in self._seen:
            return
        self._seen.add(trial.case.id)
        for verdict in trial.verdicts:
            key = (trial.case.dtype, verdict.property)
            cell = _cell(verdict, dtype=trial.case.dtype)
            self.counts[key] = self.counts[key].plus(cell) if key in self.counts else cell


def _cell(verdict: Verdict, *, dtype: str) -> Cell:
    ratio = verdict.max_ratio if verdict.max_ratio == verdict.max_ratio else float("inf")
    return Cell(
        dtype=dtype,
        property=verdict.property,
        pairs=1,
        violated=int(verdict.outcome is Said.VIOLATED),
        elements=verdict.elements,
        undecided=verdict.undecided,
        blind=verdict.blind,
        max_ratio=plain(ratio),
    )


def judge_right(
    unit: RightUnit,
    examiner: Examiner,
    *,
    keep: Callable[[Trial], None] = lambda trial: None,
    beat: Callable[[], None] = lambda: None,
) -> RightOutcome:
    """Return what the cases of a unit say of a right subject.

    Args:
        unit: The subject, the seed and the number of cases.
        examiner: Makes trials of it, at its grade.
        keep: Takes each trial, too.
        beat: Called with each event.
    """
    watch, cells = Watch(beat=beat), _Cells()

    def both(trial: Trial, place: Place) -> None:
        del place
        cells.keep(trial)
        keep(trial)

    campaign = Campaign(
        examiner=examiner,
        budget=Budget(cases=unit.cases, seconds=None),
        seed=unit.seed,
        emit=watch.handle,
        keep=both,
        policy=RIGHT_POLICY,
    )
    result = campaign.run()
    return RightOutcome(
        spec=unit.card.spec,
        grade=unit.card.grade,
        seed=unit.seed,
        cases=result.accounting.cases,
        accused=watch.accused,
        internal=result.accounting.internal,
        seconds=result.seconds,
        cells=tuple(cells.counts.values()),
        accusations=tuple(
            Accusation(property=failure.property, case=encode(failure.case).decode(), text=failure.text)
            for failure in result.failures
        ),
    )

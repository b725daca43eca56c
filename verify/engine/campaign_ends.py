"""The two ends of a campaign as they are told: what is begun, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping

from properties.verdict import Outcome
from verify.config import Budget
from verify.engine.examiner import Examiner
from verify.engine.failures import Failures, root_first
from verify.engine.floor import Floor
from verify.engine.tally import Tally
from verify.events import CampaignStarted
from verify.result import SubjectResult
from verify.strict_json import plain
from verify.subject import Subject


def started(subject: Subject, budget: Budget, *, seed: int, excluded: float) -> CampaignStarted:
    """Return the event that opens a campaign."""
    return CampaignStarted(
        subject=subject.spec,
        label=subject.label,
        expectation=subject.expectation,
        grade=subject.promise.grade,
        domain=plain(subject.promise.domain),
        contract=plain(subject.promise.contract),
        excluded=excluded,
        device=subject.device,
        backend=subject.backend,
        seed=seed,
        cases=budget.cases,
        seconds=budget.seconds,
        lacking=subject.lacking,
    )


def result_of(
    examiner: Examiner,
    tally: Tally,
    failures: Failures,
    *,
    floor: Floor,
    excluded: float,
    states: Mapping[str, str],
    seconds: float,
    stopped: str,
    cut: float | None,
) -> SubjectResult:
    """Return what is known of a subject: VIOLATED if anything was told, HOLDS only above the floor.

    Args:
        examiner: Made the trials.
        tally: Counted them.
        failures: What was told.
        floor: What a verdict HOLDS must stand on.
        excluded: Share of the default domain that the subject's domain leaves out.
        states: Of the stored cases of known discrepancies.
        seconds: That the campaign took.
        stopped: Why it ended early.
        cut: The safety net of seconds that cut it short.
    """
    subject = examiner.subject
    outcome = Outcome.VIOLATED if failures.told else tally.outcome()
    stands, properties = tally.stands_on(), tally.properties()
    lacking = floor.lacking(stands, properties, asked=examiner.only, cut=cut)
    lacking = "" if outcome is Outcome.VIOLATED else lacking
    return SubjectResult(
        subject=subject.spec,
        label=subject.label,
        expectation=subject.expectation,
        verdict=Outcome.UNDECIDED.value if lacking else outcome.value,
        lacking=lacking,
        stands_on=stands,
        floor=floor.cases,
        grade=tally.grades(),
        required=subject.promise.grade,
        domain=plain(subject.promise.domain),
        contract=plain(subject.promise.contract),
        excluded=excluded,
        seconds=seconds,
        accounting=tally.accounting(),
        known=tally.known(subject.known, states),
        properties=properties,
        failures=root_first(failures.counted, properties),
        stopped=stopped,
        cut=cut is not None,
        pace=tally.pace(),
    )

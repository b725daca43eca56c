"""The examiner: makes a trial of a case, run on the ranks, expected in the parent meanwhile, and judged once.

A failure of our own machinery (the rank group, the reference, the judge) never becomes a verdict about the
subject: the trial carries its traceback and counts as UNDECIDED.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from properties.case import Case
from properties.domain import Contract, Domain, Grade
from properties.expectation.expected import Expected
from properties.judge.catalogue import NUMERIC
from properties.observation import Observation
from properties.verdict import Outcome, Verdict
from reference.uninterrupted import uninterrupted
from verify.errors import RankError
from verify.known.entries import SHIPPED, Entry, Extent, concerned, load
from verify.known.excusing import excuse
from verify.subject import Subject
from verify.trial import Excused, Trial

TORCH = "torch"
"""The SPEC of torch's own, which in evaluation and in a group of one rank is its native batch norm."""
GRADES: tuple[Grade, ...] = ("A", "B", "C")


class Ranks(Protocol):
    """The part of a rank pool that a trial needs (`verify.ranks.pool.RankPool`).

    Attributes:
        left: Returns after how many seconds from now whatever runs is ended in any case; may be changed.
    """

    left: Callable[[], float]

    @property
    def most_in_flight(self) -> int:
        """Cases that may be submitted and not yet observed."""

    def submit(
        self,
        spec: str,
        case: Case,
        *,
        inplace: bool = False,
        seconds: float | None = None,
        share: float = 1.0,
    ) -> Answer:
        """Give the ranks a case, for that share of so many seconds; returns at once."""

    def renew(self, spec: str) -> None:
        """Have the next case of a subject run on new ranks."""


class Answer(Protocol):
    """The part of a ticket that a trial needs (`verify.ranks.submission.Ticket`)."""

    def result(self) -> Observation:
        """Wait, bounded, for what the ranks gave back."""


class Expects(Protocol):
    """The signature of `properties.expectation.expect.expect`."""

    def __call__(self, case: Case, contract: Contract, grade: Grade, *, device: str) -> Expected:
        """Return what the reference says of `case`."""


class Predicts(Protocol):
    """The signature of `properties.mechanisms.predicted.predict`."""

    def __call__(
        self, case: Case, contract: Contract, grade: Grade, *, device: str, sites: dict[str, Extent]
    ) -> Expected:
        """Return what a subject with known mechanisms gives."""


class Judges(Protocol):
    """The signature of `properties.judge.catalogue.judge`."""

    def __call__(
        self,
        case: Case,
        observation: Observation,
        expected: Expected,
        contract: Contract,
        *,
        only: Collection[str] | None,
    ) -> tuple[Verdict, ...]:
        """Return the verdicts of all properties that apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machinery:
    """What a campaign is made of beside its ranks, so that tests can replace it.

    Attributes:
        expect: The reference.
        judge: The properties.
        predict: What mechanisms of known discrepancies give.
        cases: Strategy of the cases of a domain (a Hypothesis `SearchStrategy[Case]`); with
            `conversion=True` also of those that ask for it.
        objections: Keys of a domain that exclude a case; none if it lies in the domain.
        excluded_share: Share of the default domain's cases that a domain leaves out.
        diagnoses: The module that names causes (`verify.report.resemblance.Diagnoses`); None for no
            diagnosis.
        preload: Does what the reference must do once in a process, piece by piece until its argument says
            that it is enough.
        warmed: Has another process do, inside, what takes long in a first run on a machine.
    """

    expect: Expects
    judge: Judges
    cases: Callable[..., Any]
    objections: Callable[[Domain, Case], tuple[str, ...]]
    excluded_share: Callable[[Domain], float]
    predict: Predicts | None = None
    diagnoses: Any = None
    preload: Callable[[Callable[[], bool]], None] = lambda enough: None
    warmed: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def admits(self, domain: Domain, case: Case) -> bool:
        """Return whether `case` lies in `domain`."""
        return not self.objections(domain, case)


def machinery(*, threads: int | None = None, cpu_only: bool = False) -> Machinery:
    """Return the real parts, which import jax (see `reference.host.start`) and hypothesis."""
    with uninterrupted():
        from properties.diagnosis import diagnose
        from properties.expectation.expect import expect
        from properties.generation.membership import objections
        from properties.generation.strategies import cases, excluded_share
        from properties.judge.catalogue import judge
        from properties.mechanisms.predicted import predict
        from reference.host import start
        from reference.program import preload
        from reference.warming import warmed

        start(threads=threads, cpu_only=cpu_only)
    return Machinery(
        expect=expect,
        judge=judge,
        cases=cases,
        objections=objections,
        excluded_share=excluded_share,
        predict=predict,
        diagnoses=diagnose,
        preload=preload,
        warmed=warmed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTrial:
    """A trial that is begun: the ranks have its case, and what they must give back is known.

    Attributes:
        ticket: Has what the ranks will answer; None if they were not asked.
        expected: What it is judged by; None if our machinery failed.
        internal: The traceback if it did.
        started: Monotonic seconds.
    """

    case: Case
    ticket: Answer | None
    expected: Expected | None = None
    internal: str = ""
    started: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Examiner:
    """Makes trials of one subject.

    Attributes:
        ranks: Where cases run.
        parts: The reference and the properties.
        only: Ids of the properties to judge; None for all.
    """

    subject: Subject
    ranks: Ranks
    parts: Machinery
    only: Collection[str] | None = None

    def examine(self, case: Case, *, grades: bool = True, share: float = 1.0) -> Trial:
        """Run and judge `case` once.

        Args:
            case: The case.
            share: Of its usual time on the ranks, what it gets.
            grades: On a violation, also judge by the looser grades, to tell which one the subject satisfies.
        """
        return self.finish(self.begin(case, share=share), grades=grades)

    def begin(self, case: Case, *, share: float = 1.0) -> PendingTrial:
        """Give `case` to the ranks, behind those that are begun, and compute what is expected meanwhile."""
        started = time.monotonic()
        ticket: Answer | None = None
        try:
            inplace, seconds = self.subject.promise.contract.inplace, self.subject.promise.case_seconds
            ticket = self.ranks.submit(self.subject.spec, case, inplace=inplace, seconds=seconds, share=share)
            expected = self._expect(case, self.subject.promise.grade)
        except Exception:  # Ours, not the subject's: the pool never raises for what a subject does.
            return PendingTrial(case=case, ticket=ticket, internal=traceback.format_exc(), started=started)
        return PendingTrial(case=case, ticket=ticket, expected=expected, started=started)

    def finish(self, begun: PendingTrial, *, grades: bool = True) -> Trial:
        """Wait for the ranks, and judge what they gave back; see `examine`."""
        case, expected, internal = begun.case, begun.expected, begun.internal
        try:
            # Also when the reference failed: the case is in flight, and must be taken back.
            observation = begun.ticket.result() if begun.ticket else None
            if observation is not None and expected is not None:
                _check_digests(observation, expected)
                verdicts, excused = self._judge(case, observation, expected)
                satisfied, graded = self._grade(case, observation, verdicts, more=grades)
                return Trial(
                    case=case,
                    verdicts=verdicts,
                    excused=excused,
                    observation=observation,
                    expected=expected,
                    satisfied=satisfied,
                    graded=graded,
                    seconds=time.monotonic() - begun.started,
                )
        except Exception:
            internal = internal or traceback.format_exc()
        return Trial(case=case, internal=internal, seconds=time.monotonic() - begun.started)

    def native(self, trial: Trial, property_id: str) -> tuple[Entry, ...]:
        """Return the discrepancies of torch's native batch norm that explain what `trial` violates.

        They explain all of it, and torch's own violates the property on the same case, too.
        """
        shipped = concerned(load(SHIPPED["torch-native"]), device=self.subject.device)
        declared = {entry.id for entry in self.subject.known}
        known = tuple(entry for entry in shipped if entry.id not in declared)
        if not known or trial.observation is None or trial.expected is None:
            return ()
        examiner = replace(self, subject=replace(self.subject, known=known), only=(property_id,))
        verdicts, excused = examiner._judge(trial.case, trial.observation, trial.expected)
        if not excused or _violates(verdicts, property_id):
            return ()
        torch = replace(examiner, subject=replace(self.subject, spec=TORCH, known=()))
        if property_id not in torch.examine(trial.case, grades=False).violated:
            return ()
        ids = {item.entry for item in excused if item.property == property_id}
        return tuple(entry for entry in known if entry.id in ids)

    def _expect(self, case: Case, grade: Grade) -> Expected:
        subject = self.subject
        return self.parts.expect(case, subject.promise.contract, grade, device=subject.device)

    def _judge(
        self, case: Case, observation: Observation, expected: Expected
    ) -> tuple[tuple[Verdict, ...], tuple[Excused, ...]]:
        judging = _Judging(self, case, observation, expected.grade)
        return excuse(
            judging.judge(expected),
            self.subject.known,
            case=case,
            observation=observation,
            expected=expected,
            judges=judging,
        )

    def _grade(
        self, case: Case, observation: Observation, verdicts: tuple[Verdict, ...], *, more: bool
    ) -> tuple[str, dict[str, dict[str, float]]]:
        """Return the tightest grade found to hold, and the ratios by every grade that was tried.

        A case that holds by the required grade is not judged by tighter ones.
        """
        required = self.subject.promise.grade
        graded: dict[str, dict[str, float]] = {required: _ratios(verdicts)}
        if not any(verdict.property in NUMERIC for verdict in verdicts):
            return "", graded
        if not _breaks(verdicts):
            return required, graded
        if more:
            for grade in GRADES[GRADES.index(required) + 1 :]:
                looser, _ = self._judge(case, observation, self._expect(case, grade))
                graded[grade] = _ratios(looser)
                if not _breaks(looser):
                    return grade, graded
        return "none", graded


@dataclass(frozen=True, slots=True)
class _Judging:
    """One case's judge, for the contract and device of a subject and one grade."""

    examiner: Examiner
    case: Case
    observation: Observation
    grade: str

    def judge(self, expected: Expected) -> tuple[Verdict, ...]:
        contract, only = self.examiner.subject.promise.contract, self.examiner.only
        return self.examiner.parts.judge(self.case, self.observation, expected, contract, only=only)

    def predict(self, case: Case, sites: dict[str, Extent]) -> Expected:
        predict, subject = self.examiner.parts.predict, self.examiner.subject
        if predict is None:
            raise RankError("Expected parts with predictions of mechanisms, but got none.")
        contract, grade = subject.promise.contract, self.grade
        return predict(case, contract, grade, device=subject.device, sites=sites)  # type: ignore[arg-type]


def _violates(verdicts: tuple[Verdict, ...], property_id: str) -> bool:
    return any(v.property == property_id and v.outcome is Outcome.VIOLATED for v in verdicts)


def _breaks(verdicts: tuple[Verdict, ...]) -> bool:
    return any(v.property in NUMERIC and v.outcome is Outcome.VIOLATED for v in verdicts)


def _ratios(verdicts: tuple[Verdict, ...]) -> dict[str, float]:
    return {v.property: v.max_ratio for v in verdicts if v.property in NUMERIC}


def _check_digests(observation: Observation, expected: Expected) -> None:
    """Raise if a rank that returned did not draw the inputs that the reference drew."""
    for rank in observation.ranks:
        wanted = expected.digests.get(rank.rank)
        if rank.ending == "returned" and wanted and rank.digest and rank.digest != wanted:
            raise RankError(
                f"Expected rank {rank.rank} to draw the inputs {wanted}, but got digest={rank.digest!r}; "
                "the ranks and the parent disagree on the case's data."
            )

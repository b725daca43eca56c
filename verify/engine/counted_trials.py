"""Counted trials: the cases of one campaign as they are run or recalled, judged, counted, kept and told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from properties.case import Case
from verify.engine.deadline import Deadline
from verify.engine.examiner import Examiner, PendingTrial
from verify.engine.failures import Failures
from verify.engine.findings import SHORT_SHARE, Findings
from verify.engine.tally import Tally
from verify.events import CaseDrawn, CaseEnded, Event
from verify.record.recall import Place, Recall, Recalled
from verify.trial import Trial


@dataclass(slots=True, kw_only=True)
class CountedTrials:
    """The trials of one campaign that count, each of another case.

    Attributes:
        examiner, emit, keep, memory, deadline, tally, failures, findings: The campaign's.
        judged: The ids of the cases that were judged, or skipped as known.
    """

    examiner: Examiner
    emit: Callable[[Event], None]
    keep: Callable[[Trial, Place], None]
    memory: Recall
    deadline: Deadline
    tally: Tally
    failures: Failures
    findings: Findings
    judged: set[str] = field(default_factory=set)

    @property
    def hangs(self) -> bool:
        """Whether a hang was already found and told, so that another one tells nothing new."""
        return "ending timeout" in self.failures.told

    def begin(self, case: Case, share: float = 1.0) -> PendingTrial:
        """Hand a case to the ranks, with that share of its usual time."""
        return self.examiner.begin(case, share=min(share, SHORT_SHARE) if self.hangs else share)

    def finish(
        self,
        case: Case,
        *,
        stored: str = "",
        recalled: Recalled | None = None,
        begun: PendingTrial | None = None,
        share: float = 1.0,
    ) -> Trial | None:
        """Run and judge one case, or finish what is begun, unless it was judged before; count and tell it.

        Args:
            case: The case.
            stored: Id of the known discrepancy whose case it is; empty of a drawn one.
            recalled: What an interrupted run judged of it.
            begun: What is begun of it.
            share: Of its usual time, if it is yet to begin.

        Returns:
            The trial; None if the end of the campaign's time cut it short, so that it says nothing.
        """
        subject = self.examiner.subject.spec
        self.emit(CaseDrawn(subject=subject, case=case, number=self.tally.cases + 1, stored=stored))
        if recalled := recalled or self.memory.trial(case.id, stored):
            trial = recalled.trial
            self.deadline.recall(recalled.place.elapsed)
        else:
            trial = self.examiner.finish(begun or self.begin(case, share))
            if self.findings.cut_short(trial):
                return None
            elapsed = self.deadline.elapsed
            self.keep(trial, Place(role="stored" if stored else "drawn", entry=stored, elapsed=elapsed))
        self.tally.add(trial)
        self.judged.add(case.id)
        if not stored:
            self.failures.count(trial)
            self.findings.recent.append(case)
        self.emit(
            CaseEnded(
                subject=subject,
                case_id=case.id,
                number=self.tally.cases,
                outcome=trial.outcome,
                outcomes={verdict.property: verdict.outcome.value for verdict in trial.verdicts},
                max_ratio=max((verdict.max_ratio for verdict in trial.verdicts), default=0.0),
                internal=trial.internal,
                seconds=trial.seconds,
                pace=self.tally.pace(),
            )
        )
        return trial

"""A run: campaigns over one or more subjects, with one rank pool, one seed and one set of handlers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from verify import errors
from verify.config import DEFAULT_CONFIG, DEFAULT_MIN_CASES, Budget, Config, Policy
from verify.engine.campaign import Campaign
from verify.engine.examiner import Examiner, Machinery, machinery
from verify.engine.floor import Floor
from verify.events import CampaignEnded, CampaignStarted, Event, FailureMinimised, GroupLost, Handler
from verify.ranks.pool import LostGroup, RankPool
from verify.ranks.server_client import ServerClient
from verify.record.kept_cases import data_folder, keep_case
from verify.record.previous_run import PreviousRun
from verify.record.recall import Place, Recall
from verify.record.writing import Record
from verify.result import SubjectResult
from verify.subject import Subject, subject_from
from verify.subjects.builtins import BUILTINS
from verify.trial import Trial


class Run:
    """An open run; a context manager that ends its ranks.

    Args:
        config: What the user asked for; shared by its campaigns.
        handlers: Take the events.
        record: Takes the trials, too; must be among the handlers.
        previous: What an interrupted run had judged; its campaigns go on.
        keep: Folder for failing cases.
        client: To a server of ranks that has been started; None to start one.
        timeout: Seconds that a case may take on the ranks.
        threads, cpu_only: How jax computes in this process, see `reference.host.start`.

    Attributes:
        handlers: As given.
        unkept: Why failing cases could not be written to that folder; empty if they could.
    """

    def __init__(
        self,
        config: Config = DEFAULT_CONFIG,
        handlers: Sequence[Handler] = (),
        *,
        record: Record | None = None,
        previous: PreviousRun | None = None,
        keep: Path | None = None,
        client: ServerClient | None = None,
        timeout: float = 10.0,
        threads: int | None = None,
        cpu_only: bool = False,
    ) -> None:
        self.config = config
        self._threads, self._cpu_only = threads, cpu_only
        self.unkept = ""
        self._previous = previous
        self.handlers = tuple(handlers)
        self._record = record
        self._folder = keep or data_folder()
        self._parts: Machinery | None = None
        self._spec = ""
        self.pool = RankPool(
            device=config.device,
            backend=config.backend,
            timeout=timeout,
            on_lost=self._lost,
            client=client,
        )

    def __enter__(self) -> Self:
        """Open it; ranks start when they are needed."""
        self.pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the ranks."""
        self.pool.__exit__(kind, error, trace)

    @property
    def parts(self) -> Machinery:
        """The reference and the properties, imported on first use."""
        if self._parts is None:
            self._parts = machinery(threads=self._threads, cpu_only=self._cpu_only)
        return self._parts

    def subject(self, spec: str, *, expectation: str = "HOLDS", config: Config | None = None) -> Subject:
        """Return the subject `spec`, as a rank describes it, with what the user asked for here or of the run.

        Raises:
            SubjectError: If it cannot be loaded.
            DomainError: If its promise, or what the user asked for, are not as expected.
            KnownError: If its file of known discrepancies is not.
        """
        builtin = BUILTINS.get(spec)
        self.pool.prepare(spec)
        self.parts.preload(lambda: not self.pool.booting)
        return subject_from(
            spec,
            self.pool.describe(spec),
            label=builtin.label_on(self.config.device) if builtin else spec,
            expectation=expectation,
            config=config or self.config,
        )

    def examiner(self, subject: Subject) -> Examiner:
        """Return what makes trials of `subject`."""
        return Examiner(subject=subject, ranks=self.pool, parts=self.parts, only=self.config.properties)

    def campaign(
        self,
        subject: Subject,
        *,
        seed: int | None = None,
        budget: Budget | None = None,
        policy: Policy | None = None,
        floor: Floor | None = None,
    ) -> SubjectResult:
        """Run one campaign and return its result; one that had ended before is told again instead.

        Args:
            subject: Of this run.
            seed: Of the draws, in place of what the user asked for, like the others.
            budget: When drawing ends.
            policy: How failures are treated.
            floor: What a verdict HOLDS must stand on.

        Raises:
            RecordError: If the subject promises something else than in the run that goes on.
        """
        config = self.config
        budget = budget or config.budget
        self._spec = subject.spec
        if self._previous and (ended := self._previous.result(subject, budget)):
            return self._tell_again(*ended)

        def keep(trial: Trial, place: Place) -> None:
            self.keep(trial, place)
            campaign.stopped = self._halted or campaign.stopped

        campaign = Campaign(
            examiner=self.examiner(subject),
            budget=budget,
            seed=config.seed if seed is None else seed,
            emit=self.emit,
            keep=keep,
            memory=self._previous.memory(subject.spec) if self._previous else Recall(),
            policy=policy or Policy(fail_fast=config.fail_fast),
            floor=floor or Floor(cases=config.min_cases or DEFAULT_MIN_CASES),
            excluded=self.parts.excluded_share(subject.promise.domain),
            stopped=self._halted,
        )
        return campaign.run()

    @property
    def _halted(self) -> str:
        """Why no campaign may go on; empty if they may."""
        failed = self._record.failed if self._record else ""
        return f"the record cannot be written: {failed}" if failed else ""

    def _tell_again(self, started: CampaignStarted, result: SubjectResult) -> SubjectResult:
        """Tell a campaign that had ended, to all but the record, which has it."""
        failures = [FailureMinimised(subject=result.subject, failure=failure) for failure in result.failures]
        events: list[Event] = [started, *failures, CampaignEnded(result=result)]
        for event in events:
            for handler in self.handlers:
                if handler is not self._record:
                    handler.handle(event)
        return result

    def emit(self, event: Event) -> None:
        """Give `event` to every handler."""
        for handler in self.handlers:
            handler.handle(event)

    def keep(self, trial: Trial, place: Place | None = None) -> None:
        """Record `trial` with its place in a campaign, if it has one, and keep its case if it fails."""
        if self._record is not None:
            self._record.keep(trial, place)
        if trial.violated and not self.unkept:
            try:
                keep_case(trial.case, self._folder)
            except OSError as error:  # the verdict matters more than its copy
                self.unkept = f"{self._folder}: {error.strerror or error}"

    def _lost(self, group: LostGroup) -> None:
        if not self._spec:  # no campaign has begun: the error that follows says it
            return
        self.emit(GroupLost(subject=self._spec, world_size=group.world_size, reason=group.reason))


def exit_code(results: Sequence[SubjectResult]) -> int:
    """Return the exit code of a run with these results."""
    if any(result.verdict == "VIOLATED" and not result.met for result in results):
        return errors.NOT_MET
    if any(result.accounting.internal for result in results):
        return errors.INTERNAL
    if any(result.verdict == "UNDECIDED" for result in results):
        return errors.UNDECIDED
    return errors.OK if all(result.met for result in results) else errors.NOT_MET

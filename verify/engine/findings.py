"""Findings: what fails for the first time in a campaign is minimised, run once more, kept and told."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from properties.case import Case
from properties.verdict import Outcome
from verify.config import Policy
from verify.engine.contrast import contrasts
from verify.engine.deadline import Deadline
from verify.engine.examiner import Examiner
from verify.engine.failures import Failures, property_of
from verify.engine.recurrence import history_of
from verify.engine.search import Found, Limits, Minimum, Source, StopSearch, minimise
from verify.engine.simplify import weight
from verify.engine.tally import Tally
from verify.known.entries import Entry, extent
from verify.record.recall import Place, Recall
from verify.result import ALWAYS, History
from verify.trial import Trial

MAX_DEADLY_RUNS = 5
"""Cases that run although a known discrepancy may kill or hang a rank on them."""
MAX_HUNG_MINIMISING = 4
"""Hung runs in one minimising."""
RECENT = 256
"""Cases that may be what a smallest case fails by."""
RECURRENCE_SECONDS = 30.0
"""The net behind the runs that tell what a smallest case fails by."""
MOST_CONTRASTED = 10_000
"""Elements of a smallest case whose defaults are moved: a large one takes seconds each time."""
MAX_NEW_RANKS = 60
"""Candidates of a minimising for each of which ranks are made, because a case fails only on new ones."""
SHORT_SHARE = 0.25
"""Of its usual time, what a case gets once a hang has been found; a hang is confirmed with the whole time."""


class FatalKnown:
    """The known discrepancies that may kill or hang a rank, and how often cases ran all the same."""

    def __init__(self, known: Sequence[Entry]) -> None:
        self._known = tuple(entry for entry in known if entry.deadly)
        self._runs: Counter[str] = Counter()

    def entry(self, case: Case) -> str:
        """Return the id of one that concerns `case`, which is about to run, and had its runs; or nothing."""
        for entry in self._known:
            if extent(entry, case):
                self._runs[entry.id] += 1
                if self._runs[entry.id] > MAX_DEADLY_RUNS:
                    return entry.id
        return ""


@dataclass(frozen=True, slots=True)
class _Told:
    """The trial of a smallest case, whether it failed again, and when it fails."""

    trial: Trial
    repeats: bool
    history: History


@dataclass(slots=True, kw_only=True)
class Findings:
    """The findings of one campaign.

    Attributes:
        examiner, policy, memory, keep, deadline, tally: The campaign's.
        failures: What was told.
        deadly: What may not run.
        recent: The cases that ran last, drawn or smaller ones, the latest last.
        seconds: Spent here so far, in interrupted runs of the same campaign, too.
    """

    examiner: Examiner
    policy: Policy
    memory: Recall
    keep: Callable[[Trial, Place], None]
    deadline: Deadline
    tally: Tally
    failures: Failures
    deadly: FatalKnown
    recent: deque[Case] = field(default_factory=lambda: deque(maxlen=RECENT))
    seconds: float = 0.0
    _began: float = 0.0
    _runs: int = 0
    _drawn: Trial | None = None
    _smallest: Trial | None = None
    _pending: str = ""

    def minimise(self, source: Source, found: Found, trial: Trial) -> float:
        """Minimise what was `found` with `trial`, and tell it.

        Returns:
            Seconds that this took in an interrupted run of the same campaign; 0 if it was done now.
        """
        clock = self.deadline.clock
        self._began, self._drawn, self._smallest, self._pending = clock(), trial, trial, found.kind
        self._runs = self.tally.accounting().minimising
        limits = Limits(
            tries=self.policy.tries_left(self._runs),
            seconds=min(self.policy.seconds_left(self.seconds), self.deadline.left()),
        )
        minimum = minimise(source, found, self._fails_within(), limits=limits, clock=clock)
        told = None if self.memory.is_concluded(minimum.kind) else self._repeat(minimum)
        if told and told.history.when == "first":  # candidates ran on ranks that had run others before
            limits = replace(limits, tries=min(limits.tries, MAX_NEW_RANKS))
            minimum = minimise(source, found, self._fails_within(renew=True), limits=limits, clock=clock)
            told = self._repeat(minimum)
        earlier = self._conclude(minimum, told)
        self.seconds += clock() - self._began
        return earlier

    def conclude_again(self, kind: str, trial: Trial) -> float:
        """Tell what an interrupted run had concluded from `trial`; returns what `minimise` does."""
        self._drawn = self._smallest = trial
        return self._conclude(Minimum(kind=kind, found=trial.case, case=trial.case, complete=False))

    def tell_pending(self) -> None:
        """Tell what was not minimised to the end by its drawn case."""
        if self._pending and self._drawn is not None:
            self.failures.tell_as_is(self._pending, self._drawn, found=self._drawn.case)

    def _fails_within(self, *, renew: bool = False) -> Callable[[Case, str], bool | None]:
        """Return the test of one minimising, with its own count of hung runs; if `renew`, on new ranks."""
        hung = 0

        def fails(case: Case, kind: str) -> bool | None:
            nonlocal hung
            if not self.examiner.parts.admits(self.examiner.subject.promise.domain, case):
                return None
            if self.deadly.entry(case):
                return None
            if hung >= MAX_HUNG_MINIMISING or self.deadline.over or self.memory.is_concluded(kind):
                raise StopSearch
            self.tally.minimising()
            if renew:
                self.examiner.ranks.renew(self.examiner.subject.spec)
            # A candidate that hangs says nothing new.
            trial = self.examiner.examine(case, grades=False, share=SHORT_SHARE)
            if self.cut_short(trial):
                raise StopSearch
            hung += "timeout" in trial.endings
            self._note(trial, kind)
            self.recent.append(case)
            return kind in trial.failures

        return fails

    def _note(self, trial: Trial, kind: str) -> None:
        """Keep the trial of the smallest case: there may be no time to run it once more."""
        if kind in trial.failures and (
            self._smallest is None or weight(trial.case) < weight(self._smallest.case)
        ):
            self._smallest = trial

    def cut_short(self, trial: Trial) -> bool:
        """Return whether it was not the subject that used up the time of `trial`, but the campaign."""
        return self.deadline.over and "timeout" in trial.endings

    def _conclude(self, minimum: Minimum, told: _Told | None = None) -> float:
        """Tell every property that the smallest case violates for the first time; see `minimise`."""
        found, complete, earlier = minimum.found.id, minimum.complete, 0.0
        if previous := self.memory.conclusion(minimum.kind):
            place = previous.place
            told, earlier = _Told(previous.trial, place.repeats, place.history), place.took
            found, complete = place.found, place.complete
            self.tally.minimising(place.runs)
            self._began = self.deadline.clock() - earlier
        else:
            told = told or self._repeat(minimum)
            place = Place(
                role="minimal",
                found=found,
                kind=minimum.kind,
                complete=complete,
                repeats=told.repeats,
                runs=self.tally.accounting().minimising - self._runs,
                took=self.deadline.clock() - self._began,
                history=told.history,
            )
            self.keep(told.trial, place)
        self.failures.conclude(
            minimum.kind,
            told.trial,
            drawn=self._drawn,
            found=found,
            minimised=complete,
            repeats=told.repeats,
            history=told.history,
        )
        self._pending = ""
        return earlier

    def _repeat(self, minimum: Minimum) -> _Told:
        """Run the smallest case on new ranks; return what is to be told."""
        trial, repeats, history = self._smallest, True, ALWAYS
        if trial is None or not self.deadline.over:
            again, history = self._history(minimum, trial)
            if trial is None or not self.cut_short(again):
                trial, repeats = again, minimum.kind in again.failures
        if not repeats and self._drawn is not None:  # it fails now and then: tell what was drawn
            trial = self._drawn
        return _Told(trial, repeats, history)

    def _history(self, minimum: Minimum, smallest: Trial | None) -> tuple[Trial, History]:
        """Run the smallest case again; return the trial that tells most, and when it fails."""
        ranks = self.examiner.ranks
        kept: list[Trial] = []
        until = self.deadline.clock() + RECURRENCE_SECONDS

        def run(case: Case) -> Trial:
            if len(kept) and (self.deadline.over or self.deadline.clock() > until):
                raise StopSearch
            self.tally.minimising()
            trial = self.examiner.examine(case, grades=case == minimum.case)
            if case == minimum.case and (not kept or minimum.kind in trial.failures):
                kept[:] = [trial]
            return trial

        def fails(case: Case) -> bool:
            return minimum.kind in run(case).failures

        compiled = smallest and smallest.observation and any(r.compiled for r in smallest.observation.ranks)
        # A rank that hangs or dies is replaced anyway; new ranks would compile anew, for minutes.
        if _ends_ranks(minimum.kind) or compiled:
            run(minimum.case)
            return kept[0], ALWAYS
        size = minimum.case.world_size  # ranks of another number are other processes
        before = [case for case in self.recent if case.world_size == size and case != minimum.case]
        spec = self.examiner.subject.spec
        try:
            history = history_of(minimum.case, fails, lambda: ranks.renew(spec), before)
        except StopSearch:
            history = ALWAYS if minimum.kind in kept[0].failures else History(when="unknown")
        small = minimum.case.elements <= MOST_CONTRASTED
        if history == ALWAYS and minimum.complete and small and not minimum.case.wrong:
            history = History(holds=self._contrasts(minimum, run))
        return kept[0], history

    def _contrasts(self, minimum: Minimum, run: Callable[[Case], Trial]) -> tuple[str, ...]:
        """Return with which changes the smallest case holds; none after one that hangs."""
        domain, wanted, hung = self.examiner.subject.promise.domain, property_of(minimum.kind), False

        def holds(case: Case) -> bool:
            nonlocal hung
            if hung or not self.examiner.parts.admits(domain, case) or self.deadly.entry(case):
                return False
            with contextlib.suppress(StopSearch):
                trial = run(case)
                hung = "timeout" in trial.endings
                return any(one.property == wanted and one.outcome is Outcome.HOLDS for one in trial.verdicts)
            return False

        return contrasts(minimum.case, holds)


def _ends_ranks(kind: str) -> bool:
    return kind.startswith(("ending timeout", "ending died"))

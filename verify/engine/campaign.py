"""A campaign: draw, run, judge, record and tell, over one subject, until the budget ends.

Theory of operation
-------------------
First the stored case of each known discrepancy runs. Then rounds: each is one Hypothesis run that draws until
a property fails for the first time, and a second one that shrinks that failure in so many tries. A
property that has failed is only counted from then on, so that a round finds another one. What else the
smallest case violates is told with that same case. A trial that the memory of an interrupted run holds is not
run again (`verify.record.recall`).

Some cases are in flight: while the ranks run them one by one, the parent judges those before and draws and
expects the next. Cases are judged and counted in the order of their draws, also those in flight when
another fails. Only the end of the campaign's time cuts a case short: it says nothing, and is not counted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from properties.case import Case
from verify.config import DEFAULT_POLICY, Budget, Policy
from verify.engine.campaign_ends import result_of, started
from verify.engine.counted_trials import CountedTrials
from verify.engine.deadline import Deadline
from verify.engine.examiner import Examiner, PendingTrial
from verify.engine.failures import Failures, property_of
from verify.engine.findings import FatalKnown, Findings
from verify.engine.floor import Floor
from verify.engine.search import Found, Source, StopSearch, draw
from verify.engine.seeds import derive
from verify.engine.tally import Tally
from verify.events import CampaignEnded, Event, FailureFound
from verify.ranks.limit import unlimited
from verify.record.recall import Place, Recall, Recalled
from verify.result import SubjectResult
from verify.trial import Trial

DRAWS_AT_ONCE = 200
"""Of one run of Hypothesis: to minimise a failure they are drawn again."""
MIN_DRAWS = 100
"""Draws that a round may make beyond the budget, since cases judged before do not count."""
DEFAULT_FLOOR = Floor()
STORED_SHARE = 0.1
"""Of its usual time, what a stored case gets that is known to hang: it is small; no verdict rests on it."""
_CUT = "its safety net of seconds was used up"


@dataclass(frozen=True, slots=True)
class _Flight:
    """A drawn case, its place among the draws, and its trial: one that is recalled, or one that is begun."""

    case: Case
    place: int
    recalled: Recalled | None
    begun: PendingTrial | None


@dataclass(slots=True, kw_only=True)
class Campaign:
    """One campaign; `run` does it and returns the result.

    Attributes:
        examiner: Makes the trials.
        budget: When drawing ends.
        seed: Of the draws; the same seed and case budget draw the same cases.
        emit: Takes each event.
        keep: Takes each new trial with its place, for the record.
        memory: What an interrupted run of the same campaign had judged.
        floor: What a verdict HOLDS must stand on.
        excluded: Share of the default domain that the subject's domain leaves out.
        clock: Monotonic seconds.
    """

    examiner: Examiner
    budget: Budget
    seed: int
    emit: Callable[[Event], None]
    keep: Callable[[Trial, Place], None] = lambda trial, place: None
    memory: Recall = field(default_factory=Recall)
    policy: Policy = DEFAULT_POLICY
    floor: Floor = DEFAULT_FLOOR
    excluded: float = 0.0
    clock: Callable[[], float] = time.monotonic
    tally: Tally = field(default_factory=Tally)
    stopped: str = ""
    interrupted: bool = False
    _failures: Failures = field(init=False)
    _findings: Findings = field(init=False)
    _trials: CountedTrials = field(init=False)
    _states: dict[str, str] = field(default_factory=dict)
    _drawn: int = 0
    _deadline: Deadline = field(init=False)
    _flights: deque[_Flight] = field(default_factory=deque)
    _failing: deque[tuple[Trial, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        subject, parts = self.examiner.subject, self.examiner.parts
        self._deadline = Deadline(budget=self.budget, clock=self.clock)
        self._failures = Failures(
            subject,
            parts.diagnoses,
            emit=self.emit,
            room_for=self._deadline.room_for,
            native=self.examiner.native if parts.predict else lambda trial, property_id: (),
        )
        self._findings = Findings(
            examiner=self.examiner,
            policy=self.policy,
            memory=self.memory,
            keep=self.keep,
            deadline=self._deadline,
            tally=self.tally,
            failures=self._failures,
            deadly=FatalKnown(subject.known),
        )
        self._trials = CountedTrials(
            examiner=self.examiner,
            emit=self.emit,
            keep=self.keep,
            memory=self.memory,
            deadline=self._deadline,
            tally=self.tally,
            failures=self._failures,
            findings=self._findings,
        )

    def run(self) -> SubjectResult:
        """Run the campaign; an interrupt ends it early, with its result so far, and is raised again."""
        self._deadline.start()
        self.examiner.ranks.left = self._deadline.left
        self.emit(started(self.examiner.subject, self.budget, seed=self.seed, excluded=self.excluded))
        try:
            self._replay_known()
            self._draw()
            self._count_rest()
            self._failures.name_causes()
        except KeyboardInterrupt:
            self.interrupted, self.stopped = True, "interrupted"
            self._tell_pending()
            raise
        finally:
            self.examiner.ranks.left = unlimited
            result = self.result()
            self.emit(CampaignEnded(result=result, interrupted=self.interrupted))
        return result

    def result(self) -> SubjectResult:
        """Return what is known so far."""
        return result_of(
            self.examiner,
            self.tally,
            self._failures,
            floor=self.floor,
            excluded=self.excluded,
            states=self._states,
            seconds=self._deadline.elapsed,
            stopped=self.stopped,
            cut=self.budget.net if self.stopped == _CUT else None,
        )

    # Stored cases

    def _replay_known(self) -> None:
        """Run the stored case of each known discrepancy, unless the command line's domain excludes it.

        A stored case outside the domain that the subject promises tells its state, and nothing else.
        """
        subject = self.examiner.subject
        for entry in subject.known if self.policy.stored and not self.stopped else ():
            if self._deadline.over:
                return
            objections = self.examiner.parts.objections(subject.promise.domain, entry.case)
            if subject.narrowed.intersection(objections):
                continue
            share = STORED_SHARE if "timeout" in entry.endings else 1.0
            trial = (
                self.examiner.examine(entry.case, grades=False, share=share)
                if objections
                else self._trials.finish(entry.case, stored=entry.id, share=share)
            )
            if trial is None or trial.internal or self._findings.cut_short(trial):
                continue
            self._states[entry.id] = "seen" if any(e.entry == entry.id for e in trial.excused) else "stale"
            for kind in () if objections else trial.failures:
                self._failures.tell_as_is(kind, trial, found=entry.case)

    # Drawing

    def _draw(self) -> None:
        subject = self.examiner.subject
        asked = {"conversion": True} if subject.converts else {}
        strategy = self.examiner.parts.cases(subject.promise.domain, **asked)
        if fixed := subject.fixed:
            strategy = strategy.map(lambda case: msgspec.structs.replace(case, **fixed))
        number, idle = 0, 0
        while not self.stopped and idle < 3 and self._remaining() > 0:
            before = self._drawn
            # Cases that were judged before cost nothing: `_take` ends the draws, not Hypothesis.
            limit = min(DRAWS_AT_ONCE, self._remaining() + MIN_DRAWS)
            source = Source(strategy, seed=derive(self.seed, number), limit=limit)
            draw(source, self._take)
            self._settle()
            while self._failing:
                self._minimise(source, *self._failing.popleft())
            number += 1
            # A small domain may be exhausted: Hypothesis then ends although the budget has not.
            idle = idle + 1 if self._drawn == before else 0
        if idle >= 3 and not self.stopped and self._remaining() > self.memory.left:
            self.stopped = "no new case could be drawn"
        if self._deadline.cut and (self.budget.cases is None or self._drawn < self.budget.cases):
            self.stopped = self.stopped or _CUT

    def _remaining(self) -> int:
        """Return how many cases the budget still has, those judged before included; 0 when it is over."""
        left = self.memory.left
        if self._deadline.over:
            return left
        return 1_000_000 if self.budget.cases is None else max(left, self.budget.cases - self._drawn)

    def _over_for(self, case: Case) -> bool:
        """Return whether the budget has no room for `case`: what is left of it was judged before."""
        left, judged = self.memory.left, self._trials.judged
        return self._remaining() <= left and not (left and (self.memory.holds(case.id) or case.id in judged))

    def _take(self, case: Case, place: int) -> None:
        """Begin a drawn case, and finish the oldest one: the ranks need not wait while that is judged."""
        if case.id in self._trials.judged or any(case.id == flight.case.id for flight in self._flights):
            return
        if self._trials.hangs:  # what is begun might wait for nothing, too
            self._settle()
        if self._over_for(case) or self.stopped or self._failing:
            raise StopSearch
        self._drawn += 1
        if entry := self._findings.deadly.entry(case):
            self._trials.judged.add(case.id)
            self.tally.skip(entry)
            return
        recalled = self.memory.trial(case.id)
        begun = None if recalled else self._trials.begin(case)
        self._flights.append(_Flight(case, place, recalled, begun))
        while len(self._flights) >= self.examiner.ranks.most_in_flight:
            self._finish_oldest()
        if self.stopped or self._failing:
            raise StopSearch

    def _settle(self) -> None:
        """Finish all cases that are in flight."""
        while self._flights:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        flight = self._flights.popleft()
        trial = self._trials.finish(flight.case, recalled=flight.recalled, begun=flight.begun)
        if trial is None:
            self._drawn -= 1
        else:
            self._note(trial, flight.place)

    def _note(self, trial: Trial, place: int) -> None:
        """Note what a drawn case says of the campaign: what fails for the first time, and whether to stop."""
        self.stopped = self.tally.costly or self.stopped
        if self._failures.fresh(trial, first=self.policy.stop_after_violating):
            self._failing.append((trial, place))
        else:
            self._stop_if_enough()

    def _minimise(self, source: Source, trial: Trial, place: int) -> None:
        """Minimise a failure of a drawn case, unless it was told meanwhile, and tell it."""
        subject = self.examiner.subject.spec
        for kind in self._failures.fresh(trial, first=self.policy.stop_after_violating)[:1]:
            self.emit(FailureFound(subject=subject, property=property_of(kind), case=trial.case))
            self._concluded(self._findings.minimise(source, Found(kind, trial.case, place), trial))

    def _concluded(self, earlier: float) -> None:
        """Note that a failure was told, which took `earlier` seconds in an interrupted run."""
        self._deadline.began -= earlier
        self._stop_if_enough()
        if self.policy.fail_fast:
            self.stopped = "first failure"

    def _count_rest(self) -> None:
        """Count what was judged before and is not drawn again, since the budget is another one."""
        while recalled := self.memory.next():
            case = recalled.trial.case
            if case.id in self._trials.judged:
                continue
            self._drawn += 1
            trial = self._trials.finish(case, recalled=recalled) or recalled.trial
            for kind in trial.failures:
                if kind not in self._failures.told and self.memory.is_concluded(kind):
                    self._concluded(self._findings.conclude_again(kind, trial))
                self._failures.tell_as_is(kind, trial, found=case)

    def _stop_if_enough(self) -> None:
        """End the drawing once every property of the policy's `stop_after_violating` was violated."""
        violated = self.tally.violated | set(map(property_of, self._failures.told))
        if (wanted := self.policy.stop_after_violating) and wanted <= violated:
            self.stopped = self.stopped or "every property that was looked for is violated"

    # Failures

    def _tell_pending(self) -> None:
        """Tell what was not minimised, or not to the end, by its drawn case."""
        self._findings.tell_pending()
        for trial, _ in self._failing:
            for kind in self._failures.fresh(trial):
                self._failures.tell_as_is(kind, trial, found=trial.case)

"""A campaign: draw, run, judge, record and tell, over one subject, until the budget ends.

Theory of operation
-------------------
First the stored case of each known discrepancy runs. Then rounds: each is one Hypothesis run that draws until
a property fails for the first time, and a second one that shrinks that failure within a time bound. A
property that has failed is only counted from then on, so that a round finds another one. What else the
smallest case violates is told with that same case. A trial that the memory of an interrupted run holds is not
run again (`verify.memory`).

Some cases are in flight: while the ranks run them one by one, the parent judges those before and draws and
expects the next. Cases are judged, counted and told in the order in which they were drawn. Those that are in
flight when another fails, or ends the campaign, are judged and counted, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from properties.case import Case
from properties.verdict import Outcome
from verify.events import CampaignEnded, CampaignStarted, CaseDrawn, CaseEnded, Event, FailureFound
from verify.failures import Failures, property_of
from verify.known import extent
from verify.memory import Memory, Place, Recalled
from verify.minimise import Found, Minimum, Over, Source, draw, minimise
from verify.plain import plain
from verify.policy import DEFAULT_BUDGET, DEFAULT_POLICY, Budget, Policy
from verify.result import SubjectResult
from verify.tally import Tally
from verify.trial import Begun, Examiner, Trial

__all__ = ["DEFAULT_BUDGET", "DEFAULT_POLICY", "Budget", "Campaign", "Policy", "derive"]

DRAWS_AT_ONCE = 200
"""Of one run of Hypothesis: to minimise a failure they are drawn again."""
MIN_DRAWS = 100
"""Draws that a round may make beyond the budget, since cases judged before do not count."""
MAX_DEADLY_RUNS = 5
"""Drawn cases that run although a known discrepancy may kill or hang a rank on them."""
MAX_HUNG = 3
"""Hung cases, each of which costs a time limit, after which drawing ends."""
MAX_HUNG_MINIMISING = 4
"""Hung runs in one minimising."""
MAX_LOST = 10
"""Cases that cost a rank group, after which drawing ends: whatever they say was said."""
SHORT_TIMEOUT = 2.5
"""Seconds that a case may take once a hang has been found; a hang is confirmed with the whole time."""
STORED_TIMEOUT = 1.0
"""Seconds that a stored case may take which is known to hang: it is small, and no verdict rests on it."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A drawn case, its place among the draws, and its trial: one that is recalled, or one that is begun."""

    case: Case
    place: int
    recalled: Recalled | None
    begun: Begun | None


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
        excluded: Share of the default domain that the subject's domain leaves out.
        clock: Monotonic seconds.
    """

    examiner: Examiner
    budget: Budget
    seed: int
    emit: Callable[[Event], None]
    keep: Callable[[Trial, Place], None] = lambda trial, place: None
    memory: Memory = field(default_factory=Memory)
    policy: Policy = DEFAULT_POLICY
    excluded: float = 0.0
    clock: Callable[[], float] = time.monotonic
    tally: Tally = field(default_factory=Tally)
    stopped: str = ""
    interrupted: bool = False
    _failures: Failures = field(init=False)
    _judged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _states: dict[str, str] = field(default_factory=dict)
    _deadly: Counter[str] = field(default_factory=Counter)
    _drawn: int = 0
    _began: float = 0.0
    _minimised: float = 0.0
    _found_at: float = 0.0
    _found_runs: int = 0
    _found_trial: Trial | None = None
    _pending: str = ""
    _flights: deque[_Flight] = field(default_factory=deque)
    _failing: deque[tuple[Trial, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._failures = Failures(self.examiner.subject, self.examiner.parts.diagnoses, emit=self.emit)

    def run(self) -> SubjectResult:
        """Run the campaign; an interrupt ends it early, with its result so far, and is raised again."""
        self._began = self.clock()
        self._start()
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
            result = self.result()
            self.emit(CampaignEnded(result=result, interrupted=self.interrupted))
        return result

    def result(self) -> SubjectResult:
        """Return what is known so far."""
        subject = self.examiner.subject
        outcome = Outcome.VIOLATED if self._failures.told else self.tally.outcome()
        return SubjectResult(
            subject=subject.spec,
            label=subject.label,
            expectation=subject.expectation,
            verdict=outcome.value,
            grade=self.tally.grades(),
            required=subject.promise.grade,
            domain=plain(subject.promise.domain),
            contract=plain(subject.promise.contract),
            excluded=self.excluded,
            seconds=self.clock() - self._began,
            accounting=self.tally.accounting(),
            known=self.tally.known(subject.known, self._states),
            properties=self.tally.properties(),
            failures=tuple(self._failures.told.values()),
            stopped=self.stopped,
        )

    def _start(self) -> None:
        subject = self.examiner.subject
        self.emit(
            CampaignStarted(
                subject=subject.spec,
                label=subject.label,
                expectation=subject.expectation,
                grade=subject.promise.grade,
                domain=plain(subject.promise.domain),
                contract=plain(subject.promise.contract),
                excluded=self.excluded,
                device=subject.device,
                backend=subject.backend,
                seed=self.seed,
                cases=self.budget.cases,
                seconds=self.budget.seconds,
                lacking=subject.lacking,
            )
        )

    # Trials

    def _trial(
        self,
        case: Case,
        *,
        stored: str = "",
        recalled: Recalled | None = None,
        begun: Begun | None = None,
    ) -> Trial:
        """Run and judge one case, or finish what is begun, unless it was judged before; count and tell it."""
        self.emit(
            CaseDrawn(
                subject=self.examiner.subject.spec, case=case, number=self.tally.cases + 1, stored=stored
            )
        )
        if recalled := recalled or self.memory.trial(case.id, stored):
            trial = recalled.trial
            self._began = min(self._began, self.clock() - self._minimised - recalled.place.elapsed)
        else:
            trial = self.examiner.finish(begun or self._begin(case))
            place = Place(role="stored" if stored else "drawn", entry=stored, elapsed=self._elapsed)
            self.keep(trial, place)
        self.tally.add(trial)
        self._judged[case.id] = trial.violated
        self.emit(
            CaseEnded(
                subject=self.examiner.subject.spec,
                case_id=case.id,
                number=self.tally.cases,
                outcome=trial.outcome,
                outcomes={verdict.property: verdict.outcome.value for verdict in trial.verdicts},
                max_ratio=max((verdict.max_ratio for verdict in trial.verdicts), default=0.0),
                internal=trial.internal,
                seconds=trial.seconds,
            )
        )
        return trial

    def _begin(self, case: Case, *, ahead: bool = False) -> Begun:
        with self._hurried(SHORT_TIMEOUT if self._hangs else None):
            return self.examiner.begin(case, ahead=ahead)

    def _replay_known(self) -> None:
        """Run the stored case of each known discrepancy, unless the command line's domain excludes it.

        A stored case outside the domain that the subject promises tells its state, and nothing else.
        """
        subject = self.examiner.subject
        for entry in subject.known if self.policy.stored and not self.stopped else ():
            objections = self.examiner.parts.objections(subject.promise.domain, entry.case)
            if subject.narrowed.intersection(objections):
                continue
            with self._hurried(STORED_TIMEOUT if "timeout" in entry.endings else None):
                trial = (
                    self.examiner.examine(entry.case, grades=False)
                    if objections
                    else self._trial(entry.case, stored=entry.id)
                )
            if trial.internal:
                continue
            self._states[entry.id] = "seen" if any(e.entry == entry.id for e in trial.excused) else "stale"
            for kind in () if objections else trial.failures:
                self._failures.tell_as_is(kind, trial, found=entry.case)

    # Drawing

    def _draw(self) -> None:
        subject = self.examiner.subject
        asked = {"conversion": True} if subject.converts else {}
        strategy = self.examiner.parts.cases(subject.promise.domain, **asked)
        if fixed := self.examiner.subject.fixed:
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

    @property
    def _elapsed(self) -> float:
        """Seconds of drawing, minimising left out."""
        return self.clock() - self._began - self._minimised

    def _remaining(self) -> int:
        """Return how many cases the budget still has, those judged before included; 0 when it is over."""
        seconds, left = self.budget.seconds, self.memory.left
        if seconds is not None and self._elapsed >= seconds:
            return left
        return 1_000_000 if self.budget.cases is None else max(left, self.budget.cases - self._drawn)

    def _over_for(self, case: Case) -> bool:
        """Return whether the budget has no room for `case`: what is left of it was judged before."""
        left = self.memory.left
        again = left and (self.memory.holds(case.id) or case.id in self._judged)
        return self._remaining() <= left and not again

    def _take(self, case: Case, place: int) -> None:
        """Begin a drawn case, and finish the oldest one: the ranks need not wait while that is judged."""
        if case.id in self._judged or any(case.id == flight.case.id for flight in self._flights):
            return
        if self._hangs:  # what is begun might wait for nothing, too
            self._settle()
        if self._over_for(case) or self.stopped or self._failing:
            raise Over
        self._drawn += 1
        if entry := self._deadly_entry(case):
            self._judged[case.id] = ()
            self.tally.skip(entry)
            return
        recalled, begun = self.memory.trial(case.id), None
        if recalled is None:
            begun = self._begin(case, ahead=any(flight.begun is not None for flight in self._flights))
        self._flights.append(_Flight(case, place, recalled, begun))
        if len(self._flights) >= self.examiner.ranks.most_in_flight:
            self._finish_oldest()
        if self.stopped or self._failing:
            raise Over

    def _settle(self) -> None:
        """Finish all cases that are in flight."""
        while self._flights:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        flight = self._flights.popleft()
        trial = self._trial(flight.case, recalled=flight.recalled, begun=flight.begun)
        self._note(trial, flight.place)

    def _note(self, trial: Trial, place: int) -> None:
        """Note what a drawn case says of the campaign: what fails for the first time, and whether to stop."""
        if self.tally.hung >= MAX_HUNG:
            self.stopped = f"{self.tally.hung} cases hung"
        elif self.tally.lost >= MAX_LOST:
            self.stopped = f"{self.tally.lost} cases cost a rank group"
        if self._failures.fresh(trial, first=self.policy.until):
            self._failing.append((trial, place))
        else:
            self._stop_if_enough()

    def _minimise(self, source: Source, trial: Trial, place: int) -> None:
        """Minimise a failure of a drawn case, unless it was told meanwhile, and tell it."""
        for kind in self._failures.fresh(trial, first=self.policy.until)[:1]:
            self._found_at, self._found_trial, self._pending = self.clock(), trial, kind
            self._found_runs = self.tally.accounting().minimising
            subject = self.examiner.subject.spec
            self.emit(FailureFound(subject=subject, property=property_of(kind), case=trial.case))
            minimum = minimise(
                source,
                Found(kind, trial.case, place),
                self._fails_within(),
                seconds=self._minimise_seconds(),
                clock=self.clock,
            )
            self._conclude(minimum)
            self._minimised += self.clock() - self._found_at

    def _count_rest(self) -> None:
        """Count what was judged before and is not drawn again, since the budget is another one."""
        while recalled := self.memory.next():
            case = recalled.trial.case
            if case.id in self._judged:
                continue
            self._drawn += 1
            trial = self._trial(case, recalled=recalled)
            for kind in trial.failures:
                if kind not in self._failures.told and self.memory.is_concluded(kind):
                    self._found_trial = trial
                    self._conclude(Minimum(kind=kind, found=case, case=case, complete=False))
                self._failures.tell_as_is(kind, trial, found=case)

    def _stop_if_enough(self) -> None:
        """End the drawing once every property of the policy's `until` was violated."""
        until = self.policy.until
        if until and until <= self.tally.violated | set(map(property_of, self._failures.told)):
            self.stopped = self.stopped or "every property that was looked for is violated"

    def _deadly_entry(self, case: Case) -> str:
        """Return the id of a known discrepancy that kills or hangs a rank on `case` and ran often enough."""
        for entry in self.examiner.subject.known:
            if entry.deadly and extent(entry, case):
                self._deadly[entry.id] += 1
                if self._deadly[entry.id] > MAX_DEADLY_RUNS:
                    return entry.id
        return ""

    # Failures

    def _minimise_seconds(self) -> float:
        left = self.policy.minimise_total - self._minimised
        return min(self.policy.minimise_seconds, max(1.0, left))

    def _fails_within(self) -> Callable[[Case, str], bool]:
        """Return the test of one minimising, with its own count of hung runs."""
        hung = 0

        def fails(case: Case, kind: str) -> bool:
            nonlocal hung
            if not self.examiner.parts.admits(self.examiner.subject.promise.domain, case):
                return False
            if self._deadly_entry(case):
                return False
            if hung >= MAX_HUNG_MINIMISING or self.memory.is_concluded(kind):
                raise Over
            self.tally.minimising()
            with self._hurried(SHORT_TIMEOUT):  # a candidate that hangs says nothing new
                trial = self.examiner.examine(case, grades=False)
            hung += "timeout" in trial.endings
            return kind in trial.failures

        return fails

    @property
    def _hangs(self) -> bool:
        """Whether a hang was already found and told, so that another one tells nothing new."""
        return "ending timeout" in self._failures.told

    @contextlib.contextmanager
    def _hurried(self, seconds: float | None) -> Iterator[None]:
        """Give cases that many seconds at most on the ranks; None for the usual time."""
        ranks = self.examiner.ranks
        usual = ranks.timeout
        if seconds is not None:
            ranks.timeout = min(usual, seconds)
        try:
            yield
        finally:
            ranks.timeout = usual

    def _conclude(self, minimum: Minimum) -> None:
        """Tell every property that the smallest case violates for the first time."""
        found, complete = minimum.found.id, minimum.complete
        if past := self.memory.conclusion(minimum.kind):
            trial, repeats = past.trial, past.place.repeats
            found, complete = past.place.found, past.place.complete
            self.tally.minimising(past.place.runs)
            self._found_at, self._began = self.clock() - past.place.took, self._began - past.place.took
        else:
            trial, repeats = self._repeat(minimum)
        self._failures.conclude(
            minimum.kind, trial, drawn=self._found_trial, found=found, minimised=complete, repeats=repeats
        )
        self._pending = ""
        self._stop_if_enough()
        if self.policy.fail_fast:
            self.stopped = "first failure"

    def _repeat(self, minimum: Minimum) -> tuple[Trial, bool]:
        """Run the smallest case once more; return what is to be told, and whether it failed again."""
        self.tally.minimising()
        trial = self.examiner.examine(minimum.case)
        repeats = minimum.kind in trial.failures
        if not repeats and self._found_trial is not None:  # it fails now and then: tell what was drawn
            trial = self._found_trial
        place = Place(
            role="minimal",
            found=minimum.found.id,
            kind=minimum.kind,
            complete=minimum.complete,
            repeats=repeats,
            runs=self.tally.accounting().minimising - self._found_runs,
            took=self.clock() - self._found_at,
        )
        self.keep(trial, place)
        return trial, repeats

    def _tell_pending(self) -> None:
        """Tell what was not minimised, or not to the end, by its drawn case."""
        if self._pending and self._found_trial is not None:
            self._failures.tell_as_is(self._pending, self._found_trial, found=self._found_trial.case)
        for trial, _ in self._failing:
            for kind in self._failures.fresh(trial):
                self._failures.tell_as_is(kind, trial, found=trial.case)


def derive(seed: int, *path: int) -> int:
    """Return a 64-bit seed that depends on `seed` and `path`, different for each path."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

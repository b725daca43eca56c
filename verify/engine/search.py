"""Drawing and minimising: Hypothesis draws cases; one that failed is drawn again and shrunk, in a few tries.

Rules
-----
- A case that is drawn need not be judged before the next is: failures are told by the place of their draw.
- While a failure is minimised only its kind counts.
- Every kind of failure raises an exception class of its own: Hypothesis tells failures apart by their class.
- The smallest failing case is kept here, so that nothing is lost when the search is cut short.
- The search is bounded by the number of candidates that run, so that every machine tells the same smallest
  case. Seconds are a net behind that.

Theory of operation
-------------------
The same seed draws the same cases as long as none fails. So a failure is minimised by a second run of
Hypothesis with that seed, in which all draws hold up to the one that failed: Hypothesis shrinks from there.

Returning early from a test function does not end Hypothesis's shrinking; an exception that is no `Exception`
does, since Hypothesis lets it pass. `StopSearch` is that exception. After Hypothesis a greedy descent
simplifies the case itself (`verify.engine.simplify`), since a draw derives many fields from one seed.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis.errors import Flaky

from properties.case import Case
from verify.engine.simplify import simpler, weight

Take = Callable[[Case, int], None]
Fails = Callable[[Case, str], bool | None]
Clock = Callable[[], float]

# None applies: a trial on real ranks is slow by nature, a case is small but many, and nothing is a fixture.
_SUPPRESSED = (
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
    HealthCheck.differing_executors,
    HealthCheck.nested_given,
)


class StopSearch(BaseException):
    """The budget is over: leaves Hypothesis at once, and is never seen by a caller."""


class PropertyFailed(AssertionError):
    """A property failed; each kind of failure has a subclass of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimum:
    """The smallest failing case found.

    Attributes:
        kind: What fails, as in `Trial.failures`.
        found: The case as drawn.
        case: The smallest one.
        complete: The search ended by itself, not by its limits.
    """

    kind: str
    found: Case
    case: Case
    complete: bool


@cache
def failure_class(kind: str) -> type[PropertyFailed]:
    """Return the exception class of a kind of failure."""
    name = "".join(part.capitalize() for part in kind.replace(" ", "_").split("_")) + "Failed"
    return type(name, (PropertyFailed,), {"__doc__": f"The property `{kind}` failed."})


@dataclass(frozen=True, slots=True)
class Source:
    """The draws of one run of Hypothesis: a strategy of cases, a seed, and how many to draw at most."""

    strategy: Any
    _: KW_ONLY
    seed: int
    limit: int


@dataclass(frozen=True, slots=True)
class Found:
    """A drawn case that failed: what failed, and its place among the draws of its run, from 0 on."""

    kind: str
    case: Case
    place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a minimising may take.

    Attributes:
        tries: Candidates that it may run.
        seconds: The net behind that.
    """

    tries: int
    seconds: float


class _Shrink:
    """The test function that Hypothesis calls: all holds up to the case that failed; then it shrinks."""

    def __init__(self, found: Found, fails: Fails, *, limits: Limits, clock: Clock) -> None:
        self.found = found
        self.best = found.case
        self._fails = fails
        self._limits, self._began, self._clock = limits, clock(), clock
        self._known: dict[str, bool] = {}
        self._drawn = self._tries = 0

    def __call__(self, case: Case) -> None:
        self._drawn += 1
        if self._drawn <= self.found.place:
            return
        if self.fails(case, share=0.5):
            # The only place that raises: Hypothesis also tells failures apart by their line.
            raise failure_class(self.found.kind)(case.id)

    def fails(self, case: Case, *, share: float = 1.0) -> bool:
        """Return whether `case` violates the property in question; each case is run once.

        Raises:
            StopSearch: If that share of the limits is used up.
        """
        if case.id in (self.best.id, self.found.case.id):
            return True
        if case.id not in self._known:
            self._end_if_used_up(share)
            said = self._fails(case, self.found.kind)
            self._tries += said is not None
            self._known[case.id] = bool(said)
            if said and weight(case) < weight(self.best):
                self.best = case
        return self._known[case.id]

    def _end_if_used_up(self, share: float) -> None:
        limits = self._limits
        if self._tries >= share * limits.tries or self._clock() - self._began > share * limits.seconds:
            raise StopSearch


def draw(source: Source, take: Take) -> None:
    """Draw the cases of `source` and hand each over, with its place among the draws.

    Args:
        source: The draws.
        take: Takes a case; raises `StopSearch` to end the draws.
    """
    places = itertools.count()
    with contextlib.suppress(StopSearch):
        _explore(source, lambda case: take(case, next(places)))


def minimise(
    source: Source, found: Found, fails: Fails, *, limits: Limits, clock: Clock = time.monotonic
) -> Minimum:
    """Return the smallest case found that fails as `found` did.

    Args:
        source: The draws that it was found by.
        found: The drawn case.
        fails: Whether a case violates a property; None for a case that may not run, which is no try. May
            raise `StopSearch` to end the minimising.
        limits: Of the minimising, of which Hypothesis may take half.
        clock: Monotonic seconds.
    """
    state = _Shrink(found, fails, limits=limits, clock=clock)
    # A subject that fails now and then is Flaky: the caller runs the case kept once more, and says so.
    with contextlib.suppress(PropertyFailed, StopSearch, Flaky):
        _explore(source, state)
    complete = _descend(state)
    return Minimum(kind=found.kind, found=found.case, case=state.best, complete=complete)


def _explore(source: Source, function: Callable[[Case], None]) -> None:
    """Have Hypothesis draw the cases of `source`, and shrink the first failure.

    All settings that have a say are given: no profile of the user's, and no CI, changes what is drawn.
    """

    @hypothesis.seed(source.seed)
    @hypothesis.settings(
        backend="hypothesis",
        max_examples=max(1, source.limit),
        deadline=None,
        database=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=_SUPPRESSED,
    )
    @hypothesis.given(source.strategy)
    def body(case: Case) -> None:
        function(case)

    body()


def _descend(state: _Shrink) -> bool:
    """Simplify the best case until no candidate fails; return whether that was reached within the limits."""
    try:
        while True:
            if not any(state.fails(candidate) for candidate in simpler(state.best)):
                return True
    except StopSearch:
        pass
    return False

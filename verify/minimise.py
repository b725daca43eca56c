"""Minimising: one Hypothesis run that draws until a case fails, then shrinks it, bounded in time.

Rules
-----
- A draw says which kind of failure showed for the first time, or nothing; from then on only that kind counts.
- Every kind of failure raises an exception class of its own: Hypothesis tells failures apart by their class.
- The smallest failing case is kept here, so that nothing is lost when the time is over.

Theory of operation
-------------------
Returning early from a test function does not end Hypothesis's shrinking; an exception that is no `Exception`
does, since Hypothesis lets it pass. `Over` is that exception. After Hypothesis a greedy descent simplifies
the case itself (`verify.simplify`), since a draw derives many fields from one seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis.errors import Flaky

from properties.case import Case
from verify.simplify import simpler, weight

Draw = Callable[[Case], str | None]
Fails = Callable[[Case, str], bool]
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


class Over(BaseException):
    """The budget is over: leaves Hypothesis at once, and is never seen by a caller of `hunt`."""


class PropertyFailed(AssertionError):
    """A property failed; each kind of failure has a subclass of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimum:
    """The smallest failing case found.

    Attributes:
        kind: What fails, as in `Trial.failures`.
        found: The case as drawn.
        case: The smallest one.
        complete: The search ended by itself, not by its time.
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


class _Hunt:
    """The test function that Hypothesis calls: draws first, then shrinks."""

    def __init__(self, draw: Draw, fails: Fails, *, seconds: float, clock: Clock) -> None:
        self._draw, self._fails = draw, fails
        self._seconds, self._clock = seconds, clock
        self._known: dict[str, bool] = {}
        self.kind: str | None = None
        self.found: Case | None = None
        self.best: Case | None = None
        self.deadline = 0.0

    def __call__(self, case: Case) -> None:
        if self.kind is None:
            failed = self._first(case)
        else:
            failed = self.fails(case, until=self.deadline - self._seconds / 2)
        if failed and self.kind is not None:
            # The only place that raises: Hypothesis also tells failures apart by their line.
            raise failure_class(self.kind)(case.id)

    def _first(self, case: Case) -> bool:
        """Draw; return whether a property failed, which is from then on the one that is hunted."""
        self.kind = self._draw(case)
        if self.kind is None:
            return False
        self.found = self.best = case
        self.deadline = self._clock() + self._seconds
        return True

    def fails(self, case: Case, *, until: float) -> bool:
        """Return whether `case` violates the property hunted; each case is run once.

        Raises:
            Over: If the time `until` is over.
        """
        if self.best is None or self.kind is None:
            raise ValueError("Expected a failing case to start from, but none was found yet.")
        if case.id in (self.best.id, self.found.id if self.found else ""):
            return True
        if case.id not in self._known:
            if self._clock() > until:
                raise Over
            self._known[case.id] = self._fails(case, self.kind)
            if self._known[case.id] and weight(case) < weight(self.best):
                self.best = case
        return self._known[case.id]


def hunt(
    strategy: Any,
    draw: Draw,
    fails: Fails,
    *,
    seed: int,
    limit: int,
    seconds: float,
    clock: Clock = time.monotonic,
) -> Minimum | None:
    """Draw cases until one fails, and return the smallest failing case found; None if none failed.

    Args:
        strategy: Hypothesis strategy of cases.
        draw: Runs a drawn case; returns the property to minimise, or None. `Over` ends the search.
        fails: Whether a case violates a property. May raise `Over` to end the minimising.
        seed: Seed of the draws.
        limit: How many cases to draw at most.
        seconds: Bound of the minimising, of which Hypothesis may take half.
        clock: Monotonic seconds.
    """
    state = _Hunt(draw, fails, seconds=seconds, clock=clock)
    try:
        _explore(strategy, state, seed=seed, limit=limit)
    except (PropertyFailed, Over):
        pass
    except Flaky:
        # A subject that fails now and then: the caller runs the case kept once more, and says so.
        pass
    if state.kind is None or state.best is None or state.found is None:
        return None
    complete = _descend(state)
    return Minimum(kind=state.kind, found=state.found, case=state.best, complete=complete)


def _explore(strategy: Any, state: _Hunt, *, seed: int, limit: int) -> None:
    """Have Hypothesis draw up to `limit` cases, and shrink the first failure."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(1, limit),
        deadline=None,
        database=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=_SUPPRESSED,
    )
    @hypothesis.given(strategy)
    def body(case: Case) -> None:
        state(case)

    body()


def _descend(state: _Hunt) -> bool:
    """Simplify the best case until no candidate fails; return whether that was reached in time."""
    try:
        while state.best is not None:
            if not any(state.fails(candidate, until=state.deadline) for candidate in simpler(state.best)):
                return True
    except Over:
        pass
    return False

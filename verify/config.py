"""A policy: how long a campaign draws, when it has seen enough, and how it treats failures.

Rules
-----
- What is judged, and what is said of it, depends on counts: of cases drawn, of cases tried while minimising.
  Seconds end a campaign only where the user asked for them, or as a net, which says that it was one.
"""

from __future__ import annotations

from dataclasses import dataclass

SAFETY_NET = 1800.0
"""Seconds after which a campaign with the default budget is cut short; it says so, and decides nothing."""
DEFAULT_MIN_CASES = 20
"""Cases that a verdict HOLDS stands on at least."""
LEAST_TRIES = 40
"""Candidates that each minimising may run, however many the others took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a campaign draws.

    Attributes:
        cases, seconds: Whichever ends first; None for no limit of that kind. The seconds are those of the
            whole campaign, minimising included.
        net: Seconds after which it is cut short before its budget has ended; None for never.
    """

    cases: int | None = 500
    seconds: float | None = None
    net: float | None = None

    @classmethod
    def of(cls, cases: int | None, seconds: float | None) -> Budget:
        """Return the default budget unless one of the limits is given: that one is then the whole budget."""
        return DEFAULT_BUDGET if cases is None and seconds is None else cls(cases=cases, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a campaign treats failures.

    Attributes:
        fail_fast: End at the first failing case, once it is minimised.
        tries: Candidates that one minimising may run.
        tries_total: Candidates of all together; each still gets `LEAST_TRIES`, if `tries` is not less.
        minimise_seconds, minimise_total: Nets, where a case takes long: seconds of one minimising, and of all
            together.
        stored: Run the stored case of each known discrepancy first.
        until: Properties that are minimised first; once all were violated, drawing ends. Empty: never.
    """

    fail_fast: bool = False
    tries: int = 400
    tries_total: int = 1200
    minimise_seconds: float = 120.0
    minimise_total: float = 300.0
    stored: bool = True
    until: frozenset[str] = frozenset()

    def tries_left(self, used: int) -> int:
        """Return how many candidates the next minimising may run, after others ran `used`."""
        return min(self.tries, max(LEAST_TRIES, self.tries_total - used))

    def seconds_left(self, used: float) -> float:
        """Return after how many seconds the net ends the next minimising, after others took `used`."""
        return min(self.minimise_seconds, max(1.0, self.minimise_total - used))


DEFAULT_BUDGET = Budget(net=SAFETY_NET)
DEFAULT_POLICY = Policy()

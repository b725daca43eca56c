"""A policy: how long a campaign draws, when it has seen enough, and how it treats failures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a campaign draws: cases, seconds, or whichever ends first; None for no limit of that kind."""

    cases: int | None = 500
    seconds: float | None = 60.0

    @classmethod
    def of(cls, cases: int | None, seconds: float | None) -> Budget:
        """Return the default budget unless one of the limits is given: that one is then the whole budget."""
        return cls() if cases is None and seconds is None else cls(cases=cases, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a campaign treats failures.

    Attributes:
        fail_fast: End at the first failing case, once it is minimised.
        minimise_seconds: Bound of one minimising.
        minimise_total: Bound of all together; each still gets a second, if `minimise_seconds` is not less.
        stored: Run the stored case of each known discrepancy first.
        until: Properties that are minimised first; once all were violated, drawing ends. Empty: never.
    """

    fail_fast: bool = False
    minimise_seconds: float = 8.0
    minimise_total: float = 24.0
    stored: bool = True
    until: frozenset[str] = frozenset()


DEFAULT_BUDGET = Budget()
DEFAULT_POLICY = Policy()

"""A figure: one measured number beside its target, and what it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

Sense = Literal["at most", "at least"]
Tell = Callable[[str], None]
"""Takes one line on what is being measured."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A measured number.

    Attributes:
        name: What it is called in the table; unique.
        value: As measured; NaN if nothing could be.
        target: What it is compared with.
        sense: Whether the target is the largest or the smallest good value.
        unit: Empty for a ratio or a count.
        details: What it was made of, by name: numbers, or a text on how.
    """

    name: str
    value: float
    target: float
    sense: Sense = "at most"
    unit: str = ""
    details: dict[str, Any] = {}

    @property
    def met(self) -> bool:
        """Whether the value is on the good side of the target."""
        return self.value <= self.target if self.sense == "at most" else self.value >= self.target

    def worse_than(self, other: float) -> float:
        """Return by which share this value is worse than `other`; negative if it is better."""
        if not other:
            return 0.0 if not self.value else float("inf")
        return (self.value / other - 1.0) * (1.0 if self.sense == "at most" else -1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        quick: Just enough to see that everything works; the numbers then say little.
        memory_cases: Cases over which memory is watched; None for the usual number.
    """

    quick: bool = False
    memory_cases: int | None = None

    def of(self, usual: int, quick: int) -> int:
        """Return a number of repetitions."""
        return quick if self.quick else usual


Measure = Callable[[Effort, Tell], tuple[Figure, ...]]
"""Measures the figures of one name of the command line."""

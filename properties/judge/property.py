"""A property: its function beside every sentence that is said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.observation import Observation
from properties.verdict import Verdict

Judge = Callable[[Case, Observation, Expected, Contract], Verdict | None]

BOUNDED = (
    "An element whose bound is infinite, since an intermediate may overflow or a radicand may vanish, is "
    "undecided. "
)
COMPLETE = "Groups in which a rank did not return or had to refuse: `ending` and `refusal` speak of those."


@dataclass(frozen=True, slots=True, kw_only=True)
class Property:
    """A named pure function of a case, what was observed and what is expected.

    Attributes:
        id: Stable name.
        judge: The function; it returns None where the property does not apply to the case.
        holds: What must hold, in one sentence.
        violation: What a violation means, in one clause.
        must: What had to be, after "Then" in a message.
        quantities: What it looks at, by the names that reports use.
        not_judged: When it is not judged, or an element of it is undecided.
        expected: Of a property of numbers, what they are compared with; empty for all others.
        needs_probe: It is judged of cases that ask for it alone.
        of_ragged_cases: It is judged, too, where the input requires a gradient on some ranks only.
    """

    id: str
    judge: Judge
    holds: str
    violation: str
    must: str
    quantities: str
    not_judged: str
    expected: str = ""
    needs_probe: bool = False
    of_ragged_cases: bool = False

    @property
    def is_numeric(self) -> bool:
        """It compares numbers with those of the reference, within bounds."""
        return bool(self.expected)

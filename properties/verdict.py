"""A verdict: what one property says of one case, and how verdicts merge.

Merge order, from element to case to property to subject: VIOLATED if any is, else UNDECIDED if none was
decided, else HOLDS; the counts travel along. (Jepsen's three-valued checkers merge in the same order.)
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec


class Outcome(enum.Enum):
    """HOLDS, VIOLATED or UNDECIDED."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    UNDECIDED = "UNDECIDED"


class Discrepancy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way in which a case violates a property.

    Attributes:
        quantity: Name of the tensor (`output.0`), or what was compared (`dtype of output.0`, `ending`).
        rank: The rank on which it was seen; -1 if on all or on none in particular.
        index: Logical index of the element with the greatest ratio; empty if it is not about an element.
        observed, expected, bound, ratio: At that element.
        observed_bits: The observed value's bits in hexadecimal, if it is stored in a floating-point dtype.
        mismatched, elements: How many elements lie beyond their bound, of how many that were judged.
        at_least: More than `mismatched` may be: of a large tensor not all are looked at one by one.
        channels: Channels that hold a mismatched element.
        pattern: Which elements of the rank's tensor are mismatched, in words, if an index tells.
        relation: What the mismatched elements of that rank and channel are in terms of what is expected, in
            words, if all are the same.
        mismatched_ranks: Ranks that hold one.
        message: One sentence for people, where numbers do not tell it.
        ending: For the property `ending`: raised, timeout or died.
    """

    quantity: str
    rank: int = -1
    index: tuple[int, ...] = ()
    observed: float | str = ""
    expected: float | str = ""
    bound: float = 0.0
    ratio: float = 0.0
    observed_bits: str = ""
    mismatched: int = 0
    elements: int = 0
    at_least: bool = False
    channels: tuple[int, ...] = ()
    pattern: str = ""
    relation: str = ""
    mismatched_ranks: tuple[int, ...] = ()
    message: str = ""
    ending: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one property says of one case.

    Attributes:
        property: Its id.
        outcome: Merged over all elements that it looked at.
        elements: How many elements (or facts) it looked at.
        undecided: How many of them could not be decided.
        blind: How many decided elements have a bound above the expected magnitude.
        max_ratio: Greatest |observed - expected| / bound over the decided elements; 0 without any.
        ratios: max_ratio by quantity and storage dtype (`grad_input float32`).
        discrepancies: Why, if VIOLATED; the greatest first.
        reason: Why, if UNDECIDED and it is not a matter of bounds.
    """

    property: str
    outcome: Outcome
    elements: int = 0
    undecided: int = 0
    blind: int = 0
    max_ratio: float = 0.0
    ratios: dict[str, float] = {}
    discrepancies: tuple[Discrepancy, ...] = ()
    reason: str = ""


def holds(property_id: str, *, elements: int = 1) -> Verdict:
    """Return a verdict that `property_id` holds for `elements` facts."""
    return Verdict(property=property_id, outcome=Outcome.HOLDS, elements=elements)


def violated(property_id: str, discrepancies: Iterable[Discrepancy], *, elements: int = 1) -> Verdict:
    """Return a verdict that `property_id` is violated by `discrepancies`."""
    return Verdict(
        property=property_id, outcome=Outcome.VIOLATED, elements=elements, discrepancies=tuple(discrepancies)
    )


def undecided(property_id: str, reason: str, *, elements: int = 1) -> Verdict:
    """Return a verdict that `property_id` could not be decided, and why."""
    return Verdict(
        property=property_id, outcome=Outcome.UNDECIDED, elements=elements, undecided=elements, reason=reason
    )


def merge_outcomes(outcomes: Iterable[Outcome]) -> Outcome:
    """Return VIOLATED if any outcome is, else UNDECIDED if none was decided, else HOLDS."""
    seen = set(outcomes)
    if Outcome.VIOLATED in seen:
        return Outcome.VIOLATED
    return Outcome.HOLDS if Outcome.HOLDS in seen else Outcome.UNDECIDED

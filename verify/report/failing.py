"""Failing cases: each told once, by the property that others follow from, with the others in a line each.

What other cases show of the same cause is told in lines, too: one report a cause, not one a property.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from properties.judge.catalogue import PROPERTIES
from properties.verdict import Discrepancy
from verify.report.words import count, ratio
from verify.result import Failure

SAME_CASE = "The same case also violates (in full with -v)"
_SAME_CAUSE = "Of the same cause other cases violate (in full with -v)"


def by_cause(failures: Sequence[Failure]) -> Iterator[str]:
    """Yield the message of each failing case that shows something else than those before it.

    Args:
        failures: Those first that others follow from.
    """
    cases: dict[str, list[Failure]] = {}
    for failure in failures:
        cases.setdefault(failure.case.id, []).append(failure)
    told: dict[tuple[str, str], list[list[Failure]]] = {}
    for number, block in enumerate(cases.values()):
        told.setdefault(_cause(block[0]) or ("", str(number)), []).append(block)
    for (first, *others), *more in told.values():
        lines = [first.text]
        if first.cases > 1:
            lines.append(f"Seen in {count(first.cases, 'case')}.")
        lines.extend([SAME_CASE] * bool(others))
        lines.extend(_line(other) for other in others)
        lines.extend([_SAME_CAUSE] * bool(more))
        lines.extend(f"{_line(other)}; case {other.case.id}" for block in more for other in block)
        yield "\n".join(lines)


def also(property_id: str, found: Discrepancy) -> str:
    """Return the line of a property that is not told in full, with its greatest discrepancy."""
    size = f": {ratio(found.ratio)} x bound" if found.bound else ""
    return f"  {property_id:<20} {PROPERTIES[property_id].violation}{size}"


def _cause(failure: Failure) -> tuple[str, str] | None:
    """Return the stage and the first cause of a failure; None if it has no cause."""
    return (failure.stage, failure.resembles[0]) if failure.resembles else None


def _line(failure: Failure) -> str:
    times = f" ({count(failure.cases, 'case')})" if failure.cases > 1 else ""
    return f"{also(failure.property, failure.discrepancy)}{times}"

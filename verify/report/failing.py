"""Failing cases: each told once, by the property that others follow from, with the others in a line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from properties.judge.catalogue import PROPERTIES
from verify.report.words import count, ratio
from verify.result import Failure


def by_case(failures: Sequence[Failure]) -> Iterator[str]:
    """Yield the message of each failing case.

    Args:
        failures: Those first that others follow from.
    """
    cases: dict[str, list[Failure]] = {}
    for failure in failures:
        cases.setdefault(failure.case.id, []).append(failure)
    for first, *others in cases.values():
        seen = [f"Seen in {count(first.cases, 'case')}."] if first.cases > 1 else []
        yield "\n".join((first.text, *seen, *_others(others)))


def _others(others: Sequence[Failure]) -> Iterator[str]:
    if others:
        yield "The same case also violates (in full with -v)"
    for other in others:
        found = other.discrepancy
        size = f": {ratio(found.ratio)} x bound" if found.bound else ""
        times = f" ({count(other.cases, 'case')})" if other.cases > 1 else ""
        yield f"  {other.property:<20} {PROPERTIES[other.property].violation}{size}{times}"

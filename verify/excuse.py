"""Excusing: taking what known discrepancies explain out of the verdicts of one case, and no more.

Theory of operation
-------------------
A violated numeric property is judged again with the bound of every excused element set to infinity: what is
still violated then is not explained by any entry. Discrepancies that are not about elements of an expected
tensor (an ending, a dtype, bit-equality between ranks) are excused one by one, each by a single entry that
covers all its ranks and channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from properties.case import Case
from properties.expected import Expected, Interval
from properties.verdict import Discrepancy, Outcome, Verdict
from verify.known import Entry, Extent, extent

Rejudge = Callable[[Expected, str], Verdict | None]


@dataclass(frozen=True, slots=True)
class Excused:
    """The property of a case that an entry excused."""

    entry: str
    property: str


@dataclass(frozen=True, slots=True)
class _Applicable:
    entry: Entry
    extent: Extent


def excuse(
    verdicts: tuple[Verdict, ...],
    known: tuple[Entry, ...],
    *,
    case: Case,
    expected: Expected,
    rejudge: Rejudge,
) -> tuple[tuple[Verdict, ...], tuple[Excused, ...]]:
    """Return `verdicts` without what `known` explains, and what it explained.

    A property whose violation is explained keeps the verdict over the elements that no entry touches.

    Args:
        verdicts: Of one case.
        known: Entries of the subject.
        case: The case.
        expected: What the verdicts were judged by.
        rejudge: Judges one property against another `Expected`.
    """
    violated = {verdict.property for verdict in verdicts if verdict.outcome is Outcome.VIOLATED}
    candidates = [entry for entry in known if violated & set(entry.properties)]
    applicable = [_Applicable(entry, found) for entry in candidates if (found := extent(entry, case))]
    if not applicable:
        return verdicts, ()
    kept: list[Verdict] = []
    excused: list[Excused] = []
    for verdict in verdicts:
        mine = [a for a in applicable if verdict.property in a.entry.properties]
        if verdict.outcome is not Outcome.VIOLATED or not mine:
            kept.append(verdict)
            continue
        rest, used = _excuse_one(verdict, mine, expected, rejudge)
        excused.extend(Excused(entry_id, verdict.property) for entry_id in used)
        kept.append(rest)
    return tuple(kept), tuple(excused)


def _excuse_one(
    verdict: Verdict, applicable: list[_Applicable], expected: Expected, rejudge: Rejudge
) -> tuple[Verdict, tuple[str, ...]]:
    """Return what remains of a violated `verdict`, and the ids of the entries that took something away."""
    used = {
        a.entry.id
        for a in applicable
        if any(_touches(a, found, verdict.property) for found in verdict.discrepancies)
    }
    masked = _mask(expected, applicable)
    again = rejudge(masked, verdict.property) if masked is not expected else verdict
    if again is None:
        again = msgspec.structs.replace(verdict, outcome=Outcome.UNDECIDED, discrepancies=())
    again = _uncounted(again, masked=max(0, again.undecided - verdict.undecided))
    if again.outcome is not Outcome.VIOLATED:
        return msgspec.structs.replace(again, reason=again.reason or "excused"), tuple(sorted(used))
    rest = tuple(
        found
        for found in again.discrepancies
        if not any(_covers(a, found, verdict.property) for a in applicable)
    )
    if rest:
        taken = used if (again != verdict or len(rest) < len(again.discrepancies)) else set()
        return msgspec.structs.replace(again, discrepancies=rest), tuple(sorted(taken))
    return (
        msgspec.structs.replace(
            again, outcome=Outcome.UNDECIDED, discrepancies=(), max_ratio=0.0, reason="excused"
        ),
        tuple(sorted(used)),
    )


def _uncounted(verdict: Verdict, *, masked: int) -> Verdict:
    """Return `verdict` without the excused elements in its counts: they are neither decided nor undecided."""
    return msgspec.structs.replace(
        verdict, elements=verdict.elements - masked, undecided=verdict.undecided - masked
    )


def _names(entry: Entry, quantity: str) -> bool:
    return not entry.quantities or quantity.startswith(entry.quantities)


def _right_ending(entry: Entry, found: Discrepancy) -> bool:
    return not (entry.endings and found.ending) or found.ending in entry.endings


def _ranks(found: Discrepancy) -> tuple[int, ...]:
    return found.mismatched_ranks or ((found.rank,) if found.rank >= 0 else ())


def _touches(applicable: _Applicable, found: Discrepancy, property_id: str) -> bool:
    """Whether the entry may excuse a part of `found`."""
    entry, where = applicable.entry, applicable.extent
    if not _right_ending(entry, found) or (property_id != "ending" and not _names(entry, found.quantity)):
        return False
    ranks = [rank for rank in (_ranks(found) or where) if rank in where]
    return any(not found.channels or where[rank][list(found.channels)].any() for rank in ranks)


def _covers(applicable: _Applicable, found: Discrepancy, property_id: str) -> bool:
    """Whether the entry excuses the whole of `found`: all its ranks, and all its channels on them."""
    where = applicable.extent
    if not _touches(applicable, found, property_id):
        return False
    ranks = _ranks(found) or tuple(where)
    if not all(rank in where for rank in ranks):
        return False
    if found.channels:
        return all(bool(where[rank][list(found.channels)].all()) for rank in ranks)
    # A discrepancy that names no channel is excused only by an entry that applies to all of them.
    return all(bool(where[rank].all()) for rank in ranks)


def _mask(expected: Expected, applicable: list[_Applicable]) -> Expected:
    """Return `expected` with infinite bounds wherever an entry excuses; the same object if it is nowhere."""
    tensors = dict(expected.tensors)
    for name, by_rank in expected.tensors.items():
        for rank, interval in by_rank.items():
            excused = [a.extent[rank] for a in applicable if rank in a.extent and _names(a.entry, name)]
            if excused:
                channels = np.logical_or.reduce(excused)
                tensors[name] = {**tensors[name], rank: _without(interval, channels)}
    if all(tensors[name] is expected.tensors[name] for name in tensors):
        return expected
    return msgspec.structs.replace(expected, tensors=tensors)


def _without(interval: Interval, channels: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Interval:
    axis = 1 if interval.bound.ndim > 1 else 0
    if interval.bound.shape[axis : axis + 1] != channels.shape:
        return interval
    shape = [1] * interval.bound.ndim
    shape[axis] = channels.size
    bound = np.where(channels.reshape(shape), np.inf, interval.bound)
    return msgspec.structs.replace(interval, bound=bound)

"""The bounded comparison: every element of a quantity against its expected value, within its bound.

Rules
-----
- ratio = |observed - expected| / bound; above 1 is a discrepancy. A bound of 0 asks for equality.
- An infinite bound leaves the element undecided. An expected value that is not finite belongs to the
  property `nonfinite` and is not counted here.
- Where a finite value is expected, a NaN has the ratio infinity; so has an infinity, unless the expected
  magnitude plus bound rounds to infinity in the stored dtype and the sign is right.
- An element is blind if its bound exceeds |expected|: the comparison would not notice a zero there. An
  expected zero whose bound is only the allowance for subnormal numbers (a weight of 0, a gradient of an empty
  rank) is not: whatever else an implementation may put there is noticed.
- Absent and surplus tensors are discrepancies of their quantity; a wrong dtype or shape is one of
  `dtype_and_layout`, and such a tensor is left out here.

Theory of operation
-------------------
A large tensor that repeats comes folded (`properties.values.period.fold`): at each place of its period the
least and the greatest of what was observed. Unless one of them is beyond the bound, none is. All tensors of
the quantity, of all ranks and steps, are flattened into one vector and compared at once; only a violation is
traced back to its rank, name and index.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from properties.case import Case
from properties.expectation.expected import Expected, Interval
from properties.judge.bits import hexadecimal, number
from properties.judge.completion import INCOMPLETE, complete_ranks, failed_ranks
from properties.judge.pattern import pattern
from properties.judge.relation import relation
from properties.observation import Observation, Tensor
from properties.values.period import fold
from properties.verdict import Discrepancy, Outcome, Verdict, undecided

Floats = NDArray[np.float64]

_MISFIT = "every tensor has another dtype or shape than expected: see dtype_and_layout"
_ALLOWANCE = {"float64": 2.0**-900, "float32": 2.0**-100, "bfloat16": 2.0**-100, "float16": 2.0**-22}
_NARROWER = {"float64": 3, "float32": 2, "float16": 1, "bfloat16": 1}


@dataclass(frozen=True, slots=True)
class Pair:
    """One tensor of one rank, as expected and as observed."""

    name: str
    rank: int
    interval: Interval
    tensor: Tensor


@dataclass(slots=True)
class Matching:
    """The tensors of a quantity, matched with what is expected.

    Attributes:
        pairs: Those that can be compared element by element.
        misfits: Number of those that cannot, because of their dtype or shape.
        discrepancies: Absent and surplus tensors.
        facts: Number of tensors that were expected on ranks that can be judged.
    """

    pairs: list[Pair] = field(default_factory=list)
    misfits: int = 0
    discrepancies: list[Discrepancy] = field(default_factory=list)
    facts: int = 0


def bounded(
    property_id: str, quantity: str, *, case: Case, observation: Observation, expected: Expected
) -> Verdict | None:
    """Return what the bounded comparison says of `quantity` (`output`, `grad_input`, `running_var`, ...)."""
    matching = match(quantity, case=case, observation=observation, expected=expected)
    if not matching.facts and not matching.discrepancies:
        awaited = _names(expected, quantity) and failed_ranks(observation, expected)
        return undecided(property_id, INCOMPLETE) if awaited else None
    verdict = _compare(property_id, quantity, matching)
    if matching.misfits and verdict.elements == 0 and verdict.outcome is Outcome.HOLDS:
        return undecided(property_id, _MISFIT, elements=matching.misfits)
    return verdict


def match(quantity: str, *, case: Case, observation: Observation, expected: Expected) -> Matching:
    """Return the tensors of `quantity` on the ranks that can be judged, matched with what is expected."""
    found = Matching()
    names = _names(expected, quantity)
    prefix = quantity + "."
    for rank in complete_ranks(case, observation, expected):
        tensors = observation.ranks[rank].tensors
        for name in names:
            interval = expected.tensors[name].get(rank)
            if interval is not None:
                found.facts += 1
                _match_one(found, Pair(name, rank, interval, tensors[name]) if name in tensors else None)
                if name not in tensors and not interval.optional:
                    found.discrepancies.append(_presence(name, rank, observed="absent", expected="present"))
        for name in tensors:
            if name.startswith(prefix) and rank not in expected.tensors.get(name, ()):
                found.discrepancies.append(_presence(name, rank, observed="present", expected="absent"))
    return found


def ratios(value: Floats, bound: Floats, overflows: NDArray[np.bool_], observed: Floats) -> Floats:
    """Return |observed - expected| / bound of each element, 0 where it is undecided or not finite."""
    with np.errstate(all="ignore"):
        difference = np.abs(observed - value)
        ratio = difference / bound
        ratio = np.where(difference == 0, 0.0, ratio)
        ratio[np.isnan(ratio)] = np.inf
        if overflows.any():
            ratio[overflows & np.isinf(observed) & (np.signbit(observed) == np.signbit(value))] = 0.0
        ratio[~(np.isfinite(bound) & np.isfinite(value))] = 0.0
    return ratio


def beyond(matching: Matching) -> dict[tuple[str, int], NDArray[np.bool_]]:
    """Return which elements are beyond their bound, by name and rank, of the tensors that have such ones."""
    found = {}
    for pair in matching.pairs:
        one = pair.interval
        wrong = ratios(one.value, one.bound, one.overflows, pair.tensor.values) > 1
        if wrong.any():
            found[pair.name, pair.rank] = wrong
    return found


def _names(expected: Expected, quantity: str) -> list[str]:
    prefix = quantity + "."
    return [name for name in expected.tensors if name.startswith(prefix)]


def _match_one(found: Matching, pair: Pair | None) -> None:
    if pair is None:
        return
    stored, wanted = _NARROWER.get(pair.tensor.dtype, 0), _NARROWER[pair.interval.dtype]
    fits = pair.tensor.dtype == pair.interval.dtype or stored > wanted
    if fits and pair.tensor.shape == pair.interval.shape:
        tensor = as_folded(pair.tensor, pair.interval)
        found.pairs.append(replace(pair, tensor=tensor, interval=pair.interval.at(tensor)))
    else:
        found.misfits += 1


def _presence(name: str, rank: int, *, observed: str, expected: str) -> Discrepancy:
    return Discrepancy(
        quantity=name,
        rank=rank,
        observed=observed,
        expected=expected,
        ratio=np.inf,
        mismatched_ranks=(rank,),
        message=f"{name} is {observed} on rank {rank}, but must be {expected}.",
    )


def _compare(property_id: str, quantity: str, matching: Matching) -> Verdict:
    pairs = matching.pairs
    if not pairs:
        outcome = Outcome.VIOLATED if matching.discrepancies else Outcome.HOLDS
        return Verdict(
            property=property_id, outcome=outcome, discrepancies=_merge_presence(matching.discrepancies)
        )
    value = np.concatenate([pair.interval.value.ravel() for pair in pairs])
    bound = np.concatenate([pair.interval.bound.ravel() for pair in pairs])
    overflows = np.concatenate([pair.interval.overflows.ravel() for pair in pairs])
    observed = np.concatenate([pair.tensor.values.ravel() for pair in pairs])
    ratio = ratios(value, bound, overflows, observed)
    greatest = float(ratio.max(initial=0.0))
    decided = np.isfinite(value) & np.isfinite(bound)
    poisoned = ~np.isfinite(value) & ~np.isinf(bound)
    counted = _counter(pairs)
    elements = counted(np.ones_like(poisoned)) - counted(poisoned)
    unknown = elements - counted(decided)
    visible = np.maximum(np.abs(value), _ALLOWANCE[pairs[0].interval.dtype])
    discrepancies = _merge_presence(matching.discrepancies)
    if greatest > 1:
        discrepancies += _trace(pairs, ratio)
    return Verdict(
        property=property_id,
        outcome=_outcome(discrepancies, elements=elements, unknown=unknown),
        elements=elements,
        undecided=unknown,
        blind=counted(decided & (bound > visible)),
        max_ratio=greatest,
        ratios={f"{quantity} {pairs[0].interval.dtype}": greatest} if elements > unknown else {},
        discrepancies=tuple(sorted(discrepancies, key=lambda d: -d.ratio)),
    )


def _counter(pairs: list[Pair]) -> Callable[[NDArray[np.bool_]], int]:
    """Return a function that counts the elements for which a mask over what is expected is true."""
    if all(pair.interval.weights is None for pair in pairs):
        return lambda mask: int(np.count_nonzero(mask))
    intervals = [pair.interval for pair in pairs]
    times = np.concatenate([np.broadcast_to(one.multiplicity, one.value.shape).ravel() for one in intervals])
    return lambda mask: int(times[mask].sum())


def _outcome(discrepancies: tuple[Discrepancy, ...], *, elements: int, unknown: int) -> Outcome:
    if discrepancies:
        return Outcome.VIOLATED
    return Outcome.UNDECIDED if elements and unknown == elements else Outcome.HOLDS


def _merge_presence(discrepancies: list[Discrepancy]) -> tuple[Discrepancy, ...]:
    """Return one discrepancy a name, with all ranks that show it."""
    merged: dict[tuple[str, object], Discrepancy] = {}
    for one in discrepancies:
        first = merged.get((one.quantity, one.observed))
        ranks = (*first.mismatched_ranks, one.rank) if first else (one.rank,)
        rank = first.rank if first else one.rank
        listed = ", ".join(map(str, ranks))
        merged[one.quantity, one.observed] = Discrepancy(
            quantity=one.quantity,
            rank=rank,
            observed=one.observed,
            expected=one.expected,
            ratio=one.ratio,
            mismatched_ranks=ranks,
            message=f"{one.quantity} is {one.observed}, but must be {one.expected}, on rank {listed}.",
        )
    return tuple(merged.values())


def _trace(pairs: list[Pair], ratio: Floats) -> tuple[Discrepancy, ...]:
    """Return one discrepancy a name that has elements beyond their bound, at its greatest ratio."""
    stops = list(accumulate(pair.interval.value.size for pair in pairs))
    parts: dict[str, list[tuple[Pair, Floats]]] = {}
    for pair, stop in zip(pairs, stops, strict=True):
        shape = pair.interval.value.shape
        part = ratio[stop - math.prod(shape) : stop].reshape(shape)
        parts.setdefault(pair.name, []).append((pair, part))
    found = []
    for name, entries in parts.items():
        guilty = [(pair, part) for pair, part in entries if part.size and part.max() > 1]
        if guilty:
            total = sum(math.prod(pair.interval.shape) for pair, _ in entries)
            found.append(_describe(name, guilty, elements=total))
    return tuple(found)


def _describe(name: str, guilty: list[tuple[Pair, Floats]], *, elements: int) -> Discrepancy:
    pair, part = max(guilty, key=lambda entry: float(entry[1].max()))
    place = tuple(int(i) for i in np.unravel_index(int(part.argmax()), part.shape))
    channels: set[int] = set()
    for _, other in guilty:
        axis = 1 if other.ndim > 1 else 0
        channels.update(int(c) for c in np.unique(np.nonzero(other > 1)[axis]))
    return Discrepancy(
        quantity=name,
        rank=pair.rank,
        index=pair.tensor.index(place),
        observed=number(pair.tensor.values[place]),
        expected=number(pair.interval.value[place]),
        bound=float(pair.interval.bound[place]),
        ratio=float(part[place]),
        observed_bits=hexadecimal(pair.tensor, place),
        mismatched=sum(_mismatched(entry, other > 1) for entry, other in guilty),
        elements=elements,
        at_least=any(entry.tensor.positions is not None for entry, _ in guilty),
        channels=tuple(sorted(channels)),
        pattern="" if pair.tensor.positions is not None else pattern(part > 1),
        relation=_relation(pair, part > 1, place),
        mismatched_ranks=tuple(entry.rank for entry, _ in guilty),
    )


def _relation(pair: Pair, wrong: NDArray[np.bool_], place: tuple[int, ...]) -> str:
    """Return what the wrong elements of the channel of `place` have in common; nothing of a folded tensor."""
    if pair.tensor.positions is not None:
        return ""
    at: tuple[int | slice, ...] = (slice(None), place[1]) if len(place) > 1 else (slice(None),)
    of, one = wrong[at], pair.interval
    return relation(*(array[at][of] for array in (pair.tensor.values, one.value, one.bound)))


def _mismatched(pair: Pair, wrong: NDArray[np.bool_]) -> int:
    """Return how many elements are wrong, of a folded tensor how many at least.

    Where the least of a place is above what is expected, or the greatest below, so are all of that place.
    """
    tensor, interval = pair.tensor, pair.interval
    if tensor.positions is None:
        return int(np.count_nonzero(wrong))
    held = tensor.held
    low, high = wrong[:held], wrong[held : 2 * held]
    values, value = tensor.values, interval.value[:held]
    whole = (low & (values[:held] > value)) | (high & (values[held : 2 * held] < value))
    distinct = low.astype(np.int64) + (high & (tensor.positions[:held] != tensor.positions[held : 2 * held]))
    distinct = np.maximum(distinct, high)
    return int(np.where(whole, interval.multiplicity[:held], distinct).sum())


def as_folded(tensor: Tensor, interval: Interval) -> Tensor:
    """Return a tensor folded if what is expected of it is one period, and it was given back whole."""
    if not interval.repeats or tensor.positions is not None:
        return tensor
    n, c, *spatial = tensor.shape
    held, size = len(interval.value), math.prod(spatial)
    positions = fold(tensor.values.reshape(n, c, size), held)
    sample, position = np.divmod(positions, size)
    array = tensor.array.reshape(n, c, size)[sample, np.arange(c), position]
    shape = tensor.shape
    return structs.replace(tensor, array=array, positions=positions, logical_shape=shape, held=held)

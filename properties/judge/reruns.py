"""Properties `repeatable` and `scaling`: what a second run must give, whatever the first gave.

Both compare the subject with itself, bit for bit, NaN by class, and need no reference.

`scaling`: with cotangent g and parameters w, b,

    g -> 2^j g, (w, b) -> 2^k (w, b)   gives   y -> 2^k y, dx -> 2^(j+k) dx, (dw, db) -> 2^j (dw, db)

exactly, as long as no rounding falls into the subnormal range and nothing overflows, since
fl(2^k a) = 2^k fl(a). An element that does not scale and is stored within a factor of 16 of the smallest
normal number, or of 2 of the largest, is not decided; neither is one that such an element was accumulated
into. In float16 a difference of two units in the last place is not decided either: torch's native CPU kernel
passes by a float16 intermediate that is subnormal for large n. Both properties are due only if the contract
says `deterministic`, and `scaling` only if it does not say `scaling=no`: binned and exactly accumulated sums
choose how they round by the magnitudes of their terms, and give the same bits twice, but not scaled ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.bits import comparable, differences, hexadecimal, number
from properties.judge.completion import complete_ranks
from properties.judge.ending import TOO_SLOW, describe_ending
from properties.judge.property import Property
from properties.observation import Observation, Tensor
from properties.probe import second, shift_of
from properties.verdict import Discrepancy, Outcome, Verdict, undecided, violated

_RANGES = {  # Smallest normal and largest finite number.
    "float64": (2.0**-1022, float(np.finfo(np.float64).max)),
    "float32": (2.0**-126, float(np.finfo(np.float32).max)),
    "bfloat16": (2.0**-126, (2.0 - 2.0**-7) * 2.0**127),
    "float16": (2.0**-14, 65504.0),
}


def repeatable(
    case: Case, observation: Observation, expected: Expected, contract: Contract
) -> Verdict | None:
    """Return whether the same case run twice gave the same bits."""
    return _rerun("repeatable", case, observation, expected=expected, contract=contract)


def scaling(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
    """Return whether the scaled case gave outputs and gradients scaled bit for bit, and equal buffers."""
    if contract.scaling == "no":
        return None
    return _rerun("scaling", case, observation, expected=expected, contract=contract)


def _rerun(
    probe: str, case: Case, observation: Observation, *, expected: Expected, contract: Contract
) -> Verdict | None:
    again = observation.again
    if case.probe != probe or again is None or not contract.deterministic or second(case) is None:
        return None
    ranks = complete_ranks(case, observation, expected)
    if not ranks:
        return None
    failed = [again.ranks[rank] for rank in ranks if again.ranks[rank].ending != "returned"]
    if failed and all(seen.ending == "slow" for seen in failed):
        return undecided(probe, TOO_SLOW, elements=len(failed))
    if failed:
        culprits = [seen for seen in failed if seen.ending != "stopped"] or failed
        return violated(
            probe,
            [
                Discrepancy(
                    quantity="ending of the second run",
                    rank=seen.rank,
                    observed=seen.ending,
                    expected="returned",
                    message=f"In the second run, rank {seen.rank} {describe_ending(seen)}.",
                    ending=seen.ending,
                )
                for seen in culprits
            ],
            elements=len(ranks),
        )
    return _compare(probe, case, observation, ranks=ranks)


def _compare(probe: str, case: Case, observation: Observation, *, ranks: tuple[int, ...]) -> Verdict:
    found: list[Discrepancy] = []
    elements = undecided = 0
    for rank in ranks:
        for name, one, other, open_ in _pairs(case, observation, rank, scaled=probe == "scaling"):
            if one is None or other is None or not comparable(one, other):
                elements += 1
                message = f"{name} has another form in the second run on rank {rank}."
                found.append(Discrepancy(quantity=name, rank=rank, message=message))
                continue
            elements += one.array.size
            shift = shift_of(name.partition(".")[0], case) if probe == "scaling" else 0
            different = _scaled_differences(one, other, shift) if shift else differences(one, other)
            if shift and one.dtype == "float16":
                open_ = open_ | _within_two_units(one, other, shift)
            undecided += int(np.count_nonzero(different & open_))
            different = different & ~open_
            if different.any():
                found.append(_discrepancy(name, rank, (one, other), different=different, shift=shift))
            elif probe == "repeatable" and one.bits != other.bits:
                message = f"{name} of the second run has other bits than that of the first on rank {rank}."
                found.append(
                    Discrepancy(quantity=name, rank=rank, mismatched=1, at_least=True, message=message)
                )
    outcome = Outcome.VIOLATED if found else Outcome.HOLDS
    if elements and undecided == elements:
        outcome = Outcome.UNDECIDED
    return Verdict(
        property=probe, outcome=outcome, elements=elements, undecided=undecided, discrepancies=_widest(found)
    )


def _pairs(
    case: Case, observation: Observation, rank: int, *, scaled: bool
) -> Iterator[tuple[str, Tensor | None, Tensor | None, NDArray[np.bool_]]]:
    """Yield name, both tensors and which elements would be undecided, in the order of the steps."""
    assert observation.again is not None
    first, again = observation.ranks[rank].tensors, observation.again.ranks[rank].tensors
    accumulated: dict[str, NDArray[np.bool_]] = {}
    for name in sorted(first.keys() | again.keys()):
        one, other = _ends(first.get(name)), _ends(again.get(name))
        shape = one.array.shape if one is not None else ()
        open_: NDArray[np.bool_] = np.zeros(shape, np.bool_)
        quantity = name.partition(".")[0]
        shift = shift_of(quantity, case) if scaled else 0
        if shift and one is not None and one.dtype in _RANGES:
            open_ = _near_limits(one, shift)
            if quantity in ("grad_weight", "grad_bias"):
                earlier = accumulated.get(quantity)
                open_ = open_ | earlier if earlier is not None and earlier.shape == open_.shape else open_
                accumulated[quantity] = open_
        yield name, one, other, open_


def _ends(tensor: Tensor | None) -> Tensor | None:
    """Return a folded tensor without its third row: one run may have it, and the other be finite."""
    if tensor is None or tensor.positions is None:
        return tensor
    rows = slice(2 * tensor.held)
    return structs.replace(tensor, array=tensor.array[rows], positions=tensor.positions[rows])


def _near_limits(tensor: Tensor, shift: int) -> NDArray[np.bool_]:
    """Return where a stored value is so small or so large that scaling need not be exact."""
    smallest, largest = _RANGES[tensor.dtype]
    with np.errstate(invalid="ignore"):
        magnitude = np.abs(tensor.values)
        return np.asarray((magnitude < 16 * smallest) | (magnitude > np.ldexp(largest, -shift - 1)))


def _within_two_units(one: Tensor, other: Tensor, shift: int) -> NDArray[np.bool_]:
    """Return where two float16 values differ by at most two units in the last place."""
    with np.errstate(invalid="ignore"):
        a, b = np.ldexp(one.values, shift), other.values
        return np.asarray(np.isfinite(b) & (np.abs(a - b) <= 2.0**-9 * np.abs(a)))


def _scaled_differences(one: Tensor, other: Tensor, shift: int) -> NDArray[np.bool_]:
    """Return where `other` is not `one` times 2^shift; NaN by class."""
    a, b = np.ldexp(one.values, shift), other.values
    return np.asarray((a != b) & ~(np.isnan(a) & np.isnan(b)))


def _discrepancy(
    name: str, rank: int, tensors: tuple[Tensor, Tensor], *, different: NDArray[np.bool_], shift: int
) -> Discrepancy:
    one, other = tensors
    place = tuple(int(i) for i in np.argwhere(different)[0])
    factor = f" times 2^{shift}" if shift else ""
    return Discrepancy(
        quantity=name,
        rank=rank,
        index=other.index(place),
        observed=number(other.values[place]),
        expected=number(float(np.ldexp(one.values[place], shift))),
        observed_bits=hexadecimal(other, place),
        mismatched=int(np.count_nonzero(different)),
        elements=different.size,
        mismatched_ranks=(rank,),
        message=f"{name} of the second run is not that of the first{factor}, bit for bit, on rank {rank}.",
    )


def _widest(found: list[Discrepancy]) -> tuple[Discrepancy, ...]:
    """Return one discrepancy a name, that of the rank with the most differing elements."""
    widest: dict[str, Discrepancy] = {}
    for one in found:
        if one.quantity not in widest or one.mismatched > widest[one.quantity].mismatched:
            widest[one.quantity] = one
    return tuple(sorted(widest.values(), key=lambda one: -one.mismatched))


REPEATABLE = Property(
    id="repeatable",
    judge=repeatable,
    holds="The same case run twice gives the same bits.",
    violation="the same case gives other bits the second time",
    must="the same case must give the same bits twice.",
    quantities="every tensor",
    not_judged="Cases that do not ask for a second run, and where the contract says `deterministic=no`.",
    needs_probe=True,
)


SCALING = Property(
    id="scaling",
    judge=scaling,
    holds="Scaling cotangent and parameters by powers of two scales outputs and gradients exactly.",
    violation="scaling by a power of two does not scale the results exactly",
    must="scaling by a power of two must scale the results, bit for bit.",
    quantities="outputs, gradients and buffers of a second, scaled run",
    not_judged=(
        "Cases that do not ask for it, and where the contract says `deterministic=no` or `scaling=no`. "
        "Elements near the smallest normal or the largest number are undecided."
    ),
    needs_probe=True,
)

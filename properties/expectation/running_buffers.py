"""Running buffers: how expected (value, bound) pairs go from one update to the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from properties.expectation.schedule_state import Estimate, Walk, accumulation_dtype, decided, storing
from reference.program import BufferInput, compiled_update
from reference.rounding import FACTS, REFERENCE_U, DtypeFacts, constant_error

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def update_buffers(walk: Walk, k: int, *, again: bool = False) -> None:
    """Update the group's buffers with step k's moments; a globally empty batch only counts.

    Args:
        walk: Stands at step k.
        k: The step.
        again: It is the second update with these moments: the step's program has computed the first.
    """
    case, buffers = walk.case, walk.buffers
    buffers.tracked += 1
    n = case.at(k).total_of(walk.group)
    if n == 0:
        return
    step = next(iter(walk.steps[k].values()))
    output, c = step.output, case.channels
    poisoned = np.concatenate([step.poisoned, step.poisoned])
    momentum, old = right_momentum(walk), _joined(*buffers.mean, *buffers.var)
    if again:
        both = updated(  # a call costs as much for one as for the other
            walk,
            old,
            _joined(output.mean[:c], output.mean_bound[:c], output.var[:c], output.var_bound[:c]),
            momentum=momentum,
            poisoned=poisoned,
            n=n,
            below=np.repeat([0.0, _below(walk, n)], c),
        )
    else:
        new = _joined(*output.buffers[:, :c])
        both = _kept(walk, old, new, momentum=momentum, poisoned=poisoned)
    buffers.mean = Estimate(both.value[:c], both.bound[:c])
    buffers.var = Estimate(both.value[c:], both.bound[c:])


def update_scalars(walk: Walk, n: int) -> Floats:
    """Return what the program of a step over n values a channel needs to update the buffers, (15,)."""
    tracked = walk.buffers.tracked + 1
    scalars = _scalars(walk, momentum=right_momentum(walk, tracked=tracked), n=max(n, 1))
    return np.asarray((*scalars, _below(walk, max(n, 1))))


def _below(walk: Walk, n: int) -> float:
    return float(n - 1) if walk.contract.running_var == "unbiased" else 0.0


def _joined(mean: Floats, mean_bound: Floats, var: Floats, var_bound: Floats) -> Estimate:
    return Estimate(np.concatenate([mean, var]), np.concatenate([mean_bound, var_bound]))


def right_momentum(walk: Walk, *, tracked: int | None = None) -> float:
    """Return the weight of the new value in the update that the walk is at, or in the one of that number."""
    case = walk.case
    if case.momentum is None:
        number = walk.buffers.tracked if tracked is None else tracked
        return 1.0 / max(number, 1)  # 0 only where a wrong subject updates before it counts
    return case.momentum if walk.contract.momentum == "torch" else 1.0 - case.momentum


def updated(
    walk: Walk,
    old: Estimate,
    new: Estimate,
    *,
    momentum: float,
    poisoned: Bools,
    n: float,
    below: float | Floats,
) -> Estimate:
    """Return the buffer `old`, or several in a row, after an update with the moment `new`, as stored.

    Args:
        walk: Says the dtypes.
        old: The buffer, (N,), with an element for each channel of each buffer.
        new: The batch's mean or biased variance, (N,).
        momentum: Weight of the new value.
        poisoned: Where the moment is not finite, (N,).
        n: Values a channel, or what stands for it.
        below: What n is divided by to correct a variance, n - 1; 0 for no correction; (N,) or for all.
    """
    known = np.isfinite(old.value)
    before = (_pad(np.where(known, old.value, 0.0)), _pad(np.where(known, old.bound, 0.0)))
    divisor = np.broadcast_to(below, old.value.shape)
    moment = (_pad(new.value), _pad(new.bound), _pad(divisor))
    scalars = np.asarray(_scalars(walk, momentum=momentum, n=n))
    result = compiled_update(len(before[0]))(BufferInput(*before, *moment, scalars))
    value, bound = (np.asarray(array)[: len(old.value)] for array in result)
    return _kept(walk, old, Estimate(value, bound), momentum=momentum, poisoned=poisoned)


def _scalars(walk: Walk, *, momentum: float, n: float) -> tuple[float, ...]:
    """Return the scalars of `BufferInput`."""
    case = walk.case
    accumulated = accumulation_dtype(case, walk.contract)
    in_dtype = walk.contract.buffer_update == "in_dtype"
    computed = case.param_dtype if in_dtype else accumulated
    facts: DtypeFacts = FACTS[computed]
    return (
        facts.u + REFERENCE_U,
        facts.smallest_normal,
        facts.largest,
        momentum,
        constant_error(momentum, computed),
        1.0 - momentum,
        constant_error(1.0 - momentum, computed) + constant_error(momentum, computed),
        float(n),
        n * facts.u if n > 1 / facts.u else 0.0,
        *storing(case.param_dtype, computed),
        *(storing(case.param_dtype, accumulated) if in_dtype else (0.0, 0.0)),
        storing(computed, case.param_dtype)[0],
    )


def _kept(walk: Walk, old: Estimate, new: Estimate, *, momentum: float, poisoned: Bools) -> Estimate:
    """Return the updated buffers `new` as they may be stored; NaN where old or moment is not finite."""
    known = np.isfinite(old.value)
    overflows = np.abs(new.value) + new.bound >= FACTS[walk.case.param_dtype].overflow
    bound = np.where(overflows, np.inf, new.bound)  # it may be stored as infinity
    estimate = decided(new.value, bound, poisoned=poisoned | ~known)
    if momentum == 0.0:  # 0 x NaN, or no update
        return _undecided_at(estimate, poisoned & known)
    if momentum == 1.0:  # 0 x NaN, or a new value
        return _undecided_at(estimate, ~known & ~poisoned)
    return estimate


def _undecided_at(estimate: Estimate, where: Bools) -> Estimate:
    return Estimate(np.where(where, 0.0, estimate.value), np.where(where, np.inf, estimate.bound))


def _pad(array: Floats) -> Floats:
    size = 8
    while size < len(array):
        size *= 4
    padded = np.zeros(size)
    padded[: len(array)] = array
    return padded

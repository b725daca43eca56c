"""Expectation: what the reference says of a case, tensor by tensor and rank by rank.

The schedule is walked as the ranks walk it; buffers carry (value, bound) from step to step and are never
re-anchored to observed ones. A channel with a non-finite input is poisoned: its tensors are expected to be
non-finite (NaN stands for any class), and the reference computes the others with the element set to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from properties import values
from properties.case import Case, events
from properties.domain import Contract, Grade
from properties.expected import Expected, Interval
from reference.program import (
    BufferInput,
    StepInput,
    StepOutput,
    StepScalars,
    compiled_step,
    compiled_update,
    precise,
)
from reference.rounding import FACTS, REFERENCE_U, DtypeFacts, arithmetic, constant_error, depth
from reference.shards import Layout, layout, pack, unpack

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Estimate(NamedTuple):
    """Value and bound of a buffer, each (C,); NaN for a value that is expected to be non-finite."""

    value: Floats
    bound: Floats


@dataclass(slots=True)
class _Buffers:
    mean: Estimate
    var: Estimate
    tracked: int


@dataclass(slots=True)
class _Walk:
    """The state of one process group on its way through the schedule."""

    case: Case
    contract: Contract
    grade: Grade
    device: str
    group: tuple[int, ...]
    inputs: dict[tuple[int, int], tuple[Floats, Floats]]
    buffers: _Buffers
    steps: dict[int, dict[int, _Step]] = field(default_factory=dict)
    sums: dict[tuple[str, int], Estimate] = field(default_factory=dict)
    tensors: dict[str, dict[int, Interval]] = field(default_factory=dict)
    tracked: dict[str, dict[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class _Step:
    """One rank's share of one step: the program's output and where the rank lies in it."""

    where: Layout
    slot: int
    output: StepOutput
    poisoned: Bools
    poisoned_elements: Bools | None


def accumulation_dtype(case: Case, contract: Contract) -> str:
    """Return the dtype that the subject accumulates in."""
    if contract.accumulate != "default":
        return contract.accumulate
    return "float32" if case.dtype in ("float16", "bfloat16") else case.dtype


def refusals(case: Case) -> dict[int, str]:
    """Return the ranks that must refuse `case`, with the exception's type name; "" for any type.

    A wrong input is refused by every rank, a training batch of one value a channel by every rank of its group;
    in evaluation without buffers a rank normalises with its own batch and refuses a count of one.
    """
    if case.wrong:
        return dict.fromkeys(range(case.world_size), "")
    refusing = {}
    for group in case.process_groups:
        for step in case.steps:
            if step.mode == "train" and case.total_of(group) == 1:
                refusing.update(dict.fromkeys(group, "ValueError"))
            elif step.mode == "eval" and not case.tracking:
                refusing.update({rank: "ValueError" for rank in group if case.count_of(rank) == 1})
    return refusing


def expect(case: Case, contract: Contract, grade: Grade, *, device: str = "cpu") -> Expected:
    """Return the expected tensors of `case` under `contract`, with bounds for `grade`.

    Args:
        case: The case.
        contract: Which convention is right.
        grade: The error model that the bounds are for.
        device: cpu or cuda; selects the table of operations' errors.
    """
    ranks = range(case.world_size)
    drawn = {(rank, k): values.tensors(case, rank, step=k) for rank in ranks for k in range(len(case.steps))}
    digests = {
        rank: values.digest(*(array for k in range(len(case.steps)) for array in drawn[rank, k]))
        for rank in ranks
    }
    refusing = refusals(case)
    tensors: dict[str, dict[int, Interval]] = {}
    tracked: dict[str, dict[int, int]] = {}
    if not case.ragged_grad and not case.wrong:
        with precise():
            for group in case.process_groups:
                if not any(rank in refusing for rank in group):
                    walk = _walk(case, contract, grade, device=device, group=group, inputs=drawn)
                    for name, by_rank in walk.tensors.items():
                        tensors.setdefault(name, {}).update(by_rank)
                    for name, counts in walk.tracked.items():
                        tracked.setdefault(name, {}).update(counts)
    return Expected(tensors=tensors, tracked=tracked, refusals=refusing, digests=digests, grade=grade)


def _walk(
    case: Case,
    contract: Contract,
    grade: Grade,
    *,
    device: str,
    group: tuple[int, ...],
    inputs: dict[tuple[int, int], tuple[Floats, Floats]],
) -> _Walk:
    start, zero = values.parameters(case), np.zeros(case.channels)
    buffers = _Buffers(Estimate(start.running_mean, zero), Estimate(start.running_var, zero), 0)
    walk = _Walk(case, contract, grade, device, group, inputs, buffers)
    for what, k in events(case):
        if what == "forward":
            _forward(walk, k)
        else:
            _backward(walk, k)
    if case.tracking:
        _snapshot(walk, "end")
    return walk


def _forward(walk: _Walk, k: int) -> None:
    case, training = walk.case, walk.case.steps[k].mode == "train"
    if training or case.tracking:
        walk.steps[k] = _run(walk, k, walk.group, training=training)
    else:
        walk.steps[k] = {}
        for rank in walk.group:
            walk.steps[k].update(_run(walk, k, (rank,), training=True))
    for rank in walk.group:
        _store_output(walk, k, rank)
    if case.tracking:
        if training:
            _update_buffers(walk, k)
        _snapshot(walk, str(k))


def _run(walk: _Walk, k: int, members: tuple[int, ...], *, training: bool) -> dict[int, _Step]:
    """Return each member's share of step k, normalised over `members`."""
    case = walk.case
    where = layout([case.count_of(rank) for rank in members], case.channels)
    arrays = [_positions_of(case, rank, walk.inputs[rank, k]) for rank in members]
    bad = [~np.isfinite(x) for x, _ in arrays]
    poisoned = np.zeros(case.channels, np.bool_)
    for mask in bad:
        poisoned |= mask.any(axis=(0, 2))
    given = StepInput(
        x=pack(where, [np.where(mask, 0.0, x) for mask, (x, _) in zip(bad, arrays, strict=True)]),
        g=pack(where, [g for _, g in arrays]),
        mask=where.mask,
        owner=where.owner,
        parameters=_parameter_rows(walk, where),
        depths=_depths(walk, where),
        scalars=_scalars(walk, members, training=training),
    )
    output = StepOutput(*(np.asarray(array) for array in compiled_step(where.bucket)(given)))
    if not training:
        return {
            rank: _Step(where, slot, output, mask.any(axis=(0, 2)) | np.isnan(walk.buffers.mean.value), mask)
            for slot, (rank, mask) in enumerate(zip(members, bad, strict=True))
        }
    return {rank: _Step(where, slot, output, poisoned, None) for slot, rank in enumerate(members)}


def _positions_of(case: Case, rank: int, drawn: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    x, g = drawn
    return x, np.broadcast_to(g, x.shape)


def _parameter_rows(walk: _Walk, where: Layout) -> Floats:
    case, start = walk.case, values.parameters(walk.case)
    rows = np.zeros((6, where.bucket.channels))
    rows[0], rows[4] = 1.0, 1.0
    c = case.channels
    if case.has_weight:
        rows[0, :c] = start.weight
    if case.has_bias:
        rows[1, :c] = start.bias
    for row, estimate in ((2, walk.buffers.mean), (4, walk.buffers.var)):
        known = np.isfinite(estimate.value)
        rows[row, :c] = np.where(known, estimate.value, 1.0)
        rows[row + 1, :c] = np.where(known, estimate.bound, np.inf)
    return rows


def _depths(walk: _Walk, where: Layout) -> Floats:
    facts = FACTS[accumulation_dtype(walk.case, walk.contract)]
    by_rank = [depth(n, 1, walk.grade) * facts.u + n * REFERENCE_U for n in where.counts]
    by_rank += [0.0] * (where.bucket.ranks + 1 - len(by_rank))
    return np.asarray(by_rank)[where.owner][:, None]


def _scalars(walk: _Walk, members: tuple[int, ...], *, training: bool) -> Floats:
    case, dtype = walk.case, accumulation_dtype(walk.case, walk.contract)
    n = sum(case.count_of(rank) for rank in members)
    contributing = sum(case.count_of(rank) > 0 for rank in members)
    store_u, store_underflow = _storing(case.dtype, dtype)
    parameter_u, parameter_underflow = _storing(case.param_dtype, dtype)
    scalars = StepScalars(
        *arithmetic(dtype, n=n, ranks=contributing, grade=walk.grade, device=walk.device),
        n=float(max(n, 1)),
        n_error=n * FACTS[dtype].u if n > 1 / FACTS[dtype].u else 0.0,
        eps=case.eps,
        eps_error=constant_error(case.eps, dtype),
        training=float(training),
        one_pass=float(walk.grade == "C"),
        store_u=store_u,
        store_underflow=store_underflow,
        parameter_u=parameter_u,
        parameter_underflow=parameter_underflow,
    )
    return np.asarray(scalars, np.float64)


def _storing(stored: str, accumulated: str) -> tuple[float, float]:
    """Return the rounding of storing a result in a dtype: none in the dtype it was accumulated in."""
    if stored == accumulated or FACTS[stored].u < FACTS[accumulated].u:
        return 0.0, 0.0
    return FACTS[stored].u, FACTS[stored].underflow


def _store_output(walk: _Walk, k: int, rank: int) -> None:
    case, step = walk.case, walk.steps[k][rank]
    value, bound = _logical(walk, step, rank, step.output.y, step.output.y_bound)
    value = _poison(case, rank, value, step, channelwise=step.poisoned_elements is None)
    _put(walk, f"output.{k}", rank, value, bound, dtype=case.dtype)


def _logical(walk: _Walk, step: _Step, rank: int, value: Any, bound: Any) -> tuple[Floats, Floats]:
    shape = walk.case.shape_of(rank)
    return (
        np.array(unpack(step.where, value, step.slot, shape)),
        unpack(step.where, bound, step.slot, shape),
    )


def _poison(case: Case, rank: int, value: Floats, step: _Step, *, channelwise: bool) -> Floats:
    """Mark what must be non-finite: in training the whole channel, in evaluation the element alone."""
    if channelwise:
        if step.poisoned.any():
            value[:, step.poisoned] = np.nan
    elif step.poisoned_elements is not None:
        if step.poisoned_elements.any():
            value[step.poisoned_elements.reshape(case.shape_of(rank))] = np.nan
    return value


def _put(
    walk: _Walk, name: str, rank: int, value: Floats, bound: Floats, *, dtype: str, optional: bool = False
) -> None:
    facts = FACTS[dtype]
    with np.errstate(invalid="ignore"):
        overflows = np.abs(value) + bound >= facts.overflow
    interval = Interval(value=value, bound=bound, overflows=overflows, optional=optional, dtype=dtype)
    walk.tensors.setdefault(name, {})[rank] = interval


def _update_buffers(walk: _Walk, k: int) -> None:
    """Update the group's buffers with step k's moments; a globally empty batch only counts."""
    case, contract, buffers = walk.case, walk.contract, walk.buffers
    buffers.tracked += 1
    n = case.total_of(walk.group)
    if n == 0:
        return
    step = next(iter(walk.steps[k].values()))
    momentum, c = _momentum(walk), case.channels
    below = float(n - 1) if contract.running_var == "unbiased" else 0.0
    update = partial(_updated, walk, momentum=momentum, poisoned=step.poisoned)
    mean = Estimate(step.output.mean[:c], step.output.mean_bound[:c])
    var = Estimate(step.output.var[:c], step.output.var_bound[:c])
    buffers.mean = update(buffers.mean, mean, n=n, below=0.0)
    buffers.var = update(buffers.var, var, n=n, below=below)


def _momentum(walk: _Walk) -> float:
    case = walk.case
    if case.momentum is None:
        return 1.0 / walk.buffers.tracked
    return case.momentum if walk.contract.momentum == "torch" else 1.0 - case.momentum


def _updated(
    walk: _Walk, old: Estimate, new: Estimate, *, momentum: float, poisoned: Bools, n: int, below: float
) -> Estimate:
    case = walk.case
    accumulated = accumulation_dtype(case, walk.contract)
    computed = case.param_dtype if walk.contract.buffer_update == "in_dtype" else accumulated
    facts: DtypeFacts = FACTS[computed]
    known = np.isfinite(old.value)
    padded = [
        _pad(array)
        for array in (np.where(known, old.value, 0.0), np.where(known, old.bound, 0.0), new.value, new.bound)
    ]
    scalars = (
        facts.u + REFERENCE_U,
        facts.smallest_normal,
        facts.largest,
        momentum,
        constant_error(momentum, computed),
        1.0 - momentum,
        constant_error(1.0 - momentum, computed) + constant_error(momentum, computed),
        float(n),
        n * facts.u if n > 1 / facts.u else 0.0,
        below,
        *_storing(case.param_dtype, computed),
    )
    result = compiled_update()(BufferInput(*padded, np.asarray(scalars)))
    value, bound = (np.array(array)[: case.channels] for array in result)
    value[poisoned | ~known] = np.nan
    if momentum == 0.0:
        bound[poisoned], value[poisoned] = np.inf, old.value[poisoned]
    if momentum == 1.0:
        forgotten = ~known & ~poisoned
        bound[forgotten], value[forgotten] = np.inf, new.value[forgotten]
    return Estimate(value, bound)


def _pad(array: Floats) -> Floats:
    size = 8
    while size < len(array):
        size *= 4
    padded = np.zeros(size)
    padded[: len(array)] = array
    return padded


def _snapshot(walk: _Walk, at: str) -> None:
    case = walk.case
    for rank in walk.group:
        for name, estimate in (("running_mean", walk.buffers.mean), ("running_var", walk.buffers.var)):
            _put(walk, f"{name}.{at}", rank, estimate.value, estimate.bound, dtype=case.param_dtype)
        walk.tracked.setdefault(f"num_batches_tracked.{at}", {})[rank] = walk.buffers.tracked


def _backward(walk: _Walk, k: int) -> None:
    case, step = walk.case, walk.case.steps[k]
    if step.recompute and step.mode == "train" and case.tracking and _has_backward(walk):
        _update_buffers(walk, k)
    if not step.accumulate:
        walk.sums.clear()
    for rank in walk.group:
        if case.input_requires_grad(rank):
            _store_grad_input(walk, k, rank)
    for name, present in (("weight", case.has_weight), ("bias", case.has_bias)):
        if present and name not in case.frozen:
            _store_grad_parameter(walk, k, name)


def _has_backward(walk: _Walk) -> bool:
    """Whether anything requires a gradient, so that a backward (and its recomputation) runs at all."""
    case = walk.case
    trained = (case.has_weight and "weight" not in case.frozen) or (
        case.has_bias and "bias" not in case.frozen
    )
    return trained or any(case.input_requires_grad(rank) for rank in walk.group)


def _store_grad_input(walk: _Walk, k: int, rank: int) -> None:
    case, step = walk.case, walk.steps[k][rank]
    value, bound = _logical(walk, step, rank, step.output.grad_input, step.output.grad_input_bound)
    if step.poisoned_elements is None:
        value = _poison(case, rank, value, step, channelwise=True)
    empty = case.count_of(rank) == 0
    _put(walk, f"grad_input.{k}", rank, value, bound, dtype=case.dtype, optional=empty)


def _store_grad_parameter(walk: _Walk, k: int, name: str) -> None:
    """Put grad_weight or grad_bias of step k, as accumulated so far and stored in the parameters' dtype."""
    case, contract = walk.case, walk.contract
    accumulated = accumulation_dtype(case, contract)
    estimates = {rank: _own_gradient(walk, k, name, rank) for rank in walk.group}
    if contract.affine_grad != "local":
        estimates = _reduced(estimates, FACTS[accumulated], mean=contract.affine_grad == "mean")
    u, underflow = _storing(case.param_dtype, accumulated)
    for rank, (value, bound) in estimates.items():
        total = Estimate(value, bound + (u * (np.abs(value) + bound) + underflow if u else 0.0))
        before = walk.sums.get((name, rank))
        if before is not None:
            total = _added(before, total, FACTS[case.param_dtype])
        walk.sums[name, rank] = total
        optional = case.count_of(rank) == 0
        _put(walk, f"grad_{name}.{k}", rank, *total, dtype=case.param_dtype, optional=optional)


def _own_gradient(walk: _Walk, k: int, name: str, rank: int) -> Estimate:
    step, c = walk.steps[k][rank], walk.case.channels
    value = np.array(getattr(step.output, f"grad_{name}")[step.slot, :c])
    bound = np.array(getattr(step.output, f"grad_{name}_bound")[step.slot, :c])
    if walk.case.count_of(rank) == 0:
        return Estimate(np.zeros(c), np.zeros(c))
    if name == "weight":
        value[step.poisoned] = math.nan
    return Estimate(value, bound)


def _reduced(estimates: dict[int, Estimate], facts: DtypeFacts, *, mean: bool) -> dict[int, Estimate]:
    """Return the sum or mean of the ranks' gradients for each rank; a rank adds one rounding."""
    ranks = len(estimates)
    value = np.sum([value for value, _ in estimates.values()], axis=0)
    magnitude = np.sum([np.abs(value) + bound for value, bound in estimates.values()], axis=0)
    bound = np.sum([bound for _, bound in estimates.values()], axis=0) + ranks * facts.u * magnitude
    if mean:
        value, bound = value / ranks, bound / ranks + facts.u * magnitude / ranks
    return dict.fromkeys(estimates, Estimate(value, bound))


def _added(before: Estimate, new: Estimate, facts: DtypeFacts) -> Estimate:
    value, carried = before.value + new.value, before.bound + new.bound
    return Estimate(value, carried + facts.u * (np.abs(value) + carried) + facts.smallest_normal)

"""One step of one process group: from the case to the reference's program and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from properties.expectation.running_buffers import update_scalars
from properties.expectation.schedule_state import Estimate, RankStep, Walk, accumulation_dtype, storing
from properties.values import elements
from properties.values.period import is_large, times
from reference.padding import Layout, layout, pack
from reference.program import compiled_step
from reference.rounding import FACTS, REFERENCE_U, arithmetic, constant_error, depth
from reference.signature import StepInput, StepOutput, StepScalars

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def run_step(walk: Walk, k: int, members: tuple[int, ...], *, training: bool) -> dict[int, RankStep]:
    """Return each member's share of step k over `members`."""
    where, given, bad = step_input(walk, k, members, training=training)
    output = numbers(compiled_step(where.bucket)(given))
    return shares(walk, members, where=where, output=output, bad=bad, training=training)


def numbers(output: StepOutput) -> StepOutput:
    """Return a program's output as numpy arrays."""
    return StepOutput(*(None if array is None else np.asarray(array) for array in output))


def shares(
    walk: Walk,
    members: tuple[int, ...],
    *,
    where: Layout,
    output: StepOutput,
    bad: list[Bools],
    training: bool,
) -> dict[int, RankStep]:
    """Return each member's share of a step's output, with what its non-finite inputs `bad` poison."""
    unsettled = _unsettled(walk, output, training=training)
    if not training:
        lost = np.isnan(walk.buffers.mean.value)  # a poisoned buffer poisons its channel
        return {
            rank: RankStep(where, slot, output, mask.any(axis=(0, 2)) | lost, mask | lost[:, None], unsettled)
            for slot, (rank, mask) in enumerate(zip(members, bad, strict=True))
        }
    poisoned = np.zeros(walk.case.channels, np.bool_)
    for mask in bad:
        poisoned |= mask.any(axis=(0, 2))
    return {
        rank: RankStep(where, slot, output, poisoned, None, unsettled) for slot, rank in enumerate(members)
    }


def _unsettled(walk: Walk, output: StepOutput, *, training: bool) -> Bools:
    """Return the channels in which a right subject's 1 / deviation, or mean, may not be finite."""
    c, mean, var = walk.case.channels, walk.buffers.mean, walk.buffers.var
    if training:
        mean = Estimate(output.mean[:c], output.mean_bound[:c])
        var = Estimate(output.var[:c], output.var_bound[:c])
    largest = FACTS[accumulation_dtype(walk.case, walk.contract)].largest
    with np.errstate(all="ignore"):
        greatest = np.maximum(np.abs(mean.value) + mean.bound, np.abs(var.value) + var.bound)
        least = var.value - var.bound + walk.case.eps
    return ~((greatest < largest) & (least > 0))


def step_input(
    walk: Walk, k: int, members: tuple[int, ...], *, training: bool
) -> tuple[Layout, StepInput, list[Bools]]:
    """Return the padded input of step k over `members`, where it lies, and where it is not finite.

    Of a block that repeats (`properties.values.period`) it is one period.
    """
    case = walk.case.at(k)
    counts = [case.count_of(rank) for rank in members]
    drawn = [walk.inputs[rank, k] for rank in members]
    held = [x.shape[0] * x.shape[2] for x, _ in drawn]
    # A small group of a large case takes the program of one that repeats, too: it is compiled anyway.
    often = [times(*pair) for pair in zip(counts, held, strict=True)] if is_large(case) else None
    where = layout(held, case.channels, times=often)
    if storing(accumulation_dtype(case, walk.contract), case.dtype) != (0.0, 0.0):
        where = where._replace(bucket=where.bucket._replace(narrowed=True))
    arrays = [(x, np.broadcast_to(g, x.shape)) for x, g in drawn]
    bad = [~np.isfinite(x) for x, _ in arrays]
    finite = [np.where(mask, 0.0, x) if mask.any() else x for mask, (x, _) in zip(bad, arrays, strict=True)]
    given = StepInput(
        x=pack(where, finite),
        g=pack(where, [g for _, g in arrays]),
        mask=where.mask,
        owner=where.owner,
        parameters=_parameter_rows(walk, k, where),
        depths=_depths(walk, where, counts),
        scalars=_scalars(walk, k, members, training=training),
        update=update_scalars(walk, sum(counts)),
    )
    return where, given, bad


def _parameter_rows(walk: Walk, k: int, where: Layout) -> Floats:
    case = walk.case
    weight, bias = elements.affine(case, k)
    rows = np.zeros((6, where.bucket.channels))
    rows[0], rows[4] = 1.0, 1.0
    c = case.channels
    if case.has_weight:
        rows[0, :c] = weight
    if case.has_bias:
        rows[1, :c] = bias
    for row, estimate in ((2, walk.buffers.mean), (4, walk.buffers.var)):
        known = np.isfinite(estimate.value)
        rows[row, :c] = np.where(known, estimate.value, 1.0)
        rows[row + 1, :c] = np.where(known, estimate.bound, np.inf)
    return rows


def _depths(walk: Walk, where: Layout, counts: Sequence[int]) -> Floats:
    facts = FACTS[accumulation_dtype(walk.case, walk.contract)]
    by_rank = [depth(n, 1, walk.grade) * facts.u + n * REFERENCE_U for n in counts]
    by_rank += [0.0] * (where.bucket.ranks + 1 - len(by_rank))
    return np.asarray(by_rank)[where.owner][:, None]


def _scalars(walk: Walk, k: int, members: tuple[int, ...], *, training: bool) -> Floats:
    case, dtype = walk.case.at(k), accumulation_dtype(walk.case, walk.contract)
    n = sum(case.count_of(rank) for rank in members)
    contributing = sum(case.count_of(rank) > 0 for rank in members)
    store_u, store_underflow = storing(case.dtype, dtype)
    parameter_u, parameter_underflow = storing(case.param_dtype, dtype)
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

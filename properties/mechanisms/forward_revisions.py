"""Forward revisions: what mechanisms make of a training step's moments, as runs of the program."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from properties.case import Case
from properties.expectation.schedule_state import Walk, accumulation_dtype
from properties.mechanisms import encoded_moments, half_precision
from properties.mechanisms.carrying import moments_of, no_errors, scale_of
from properties.mechanisms.cuda_kernels import extra_depth
from properties.mechanisms.native_kernels import STRIDED
from properties.mechanisms.revisions import training_gradient, undecided
from properties.mechanisms.step_data import Bools, Floats
from properties.mechanisms.step_run import StepRun, computed
from reference.padding import Layout
from reference.rounding import FACTS
from reference.signature import StepInput, StepScalars


def by_few_threads(case: Case, where: Layout, given: StepInput, members: tuple[int, ...]) -> StepInput:
    """Return a step's input with the depth of what few threads of a block add up."""
    scalars, at = np.array(given.scalars), StepScalars._fields.index("depth_u")
    extra = np.zeros(where.bucket.ranks + 1)
    extra[: len(members)] = [extra_depth(case, rank) for rank in members]
    extra *= scalars[StepScalars._fields.index("u")]
    scalars[at] += extra.max()
    return given._replace(scalars=scalars, depths=given.depths + extra[where.owner][:, None])


def decoded(walk: Walk, run: StepRun, active: Bools) -> tuple[StepRun, Bools]:
    """Return the run with the error of decoded variances, and the channels in which one is infinite."""
    data = run.data
    local = encoded_moments.local_moments(data)
    error = (local.counts * encoded_moments.decoding_error(local, data)).sum(axis=0) / data.scalars.n
    infinite = np.zeros_like(active)
    if walk.case.eps == 0:
        dtype = accumulation_dtype(walk.case, walk.contract)
        surely, possibly = encoded_moments.zero_variances(local, data, dtype)
        squares = 4.0 * data.greatest(np.abs(data.x)).max(axis=0) ** 2  # of a mean; times 0 it would be NaN
        infinite = surely.any(axis=0) & active & (squares < data.scalars.largest)
        error = np.where(possibly.any(axis=0) & ~infinite, np.inf, error)
    error, moments = np.where(active, error, 0.0), run.moments
    _, widest = scale_of(data, moments.var, moments.var_error + error)
    more = np.where(np.isinf(widest), np.inf, widest - np.where(np.isinf(widest), 0.0, moments.scale_error))
    run = run.widened(no_errors(len(error))._replace(scale=np.where(active, np.maximum(more, 0.0), 0.0)))
    return replace(run, output=run.output._replace(var_bound=run.output.var_bound + error)), infinite


def counted(walk: Walk, run: StepRun) -> tuple[StepRun, Bools]:
    """Return the run of a merge with rounded counts, and the channels whose variance is infinite."""
    data, case = run.data, walk.case
    merged = encoded_moments.merged_by_counts(encoded_moments.local_moments(data), data, case.param_dtype)
    with np.errstate(all="ignore"):
        var, var_error = merged.squares / merged.total, merged.squares_error / merged.total
    lost = ~np.isfinite(merged.mean) | np.isnan(var)
    infinite = np.isinf(var) & ~lost
    known = ~(lost | infinite)
    summed = known & np.isfinite(run.output.mean_bound)  # no sum of a rank can overflow
    moments = moments_of(
        data,
        (np.where(known, merged.mean, 0.0), np.where(summed, merged.mean_error, np.inf)),
        (np.where(known, var, 1.0), np.where(known, var_error, np.inf)),
    )
    rows, scalars = np.array(run.given.parameters), np.array(run.given.scalars)
    rows[2:6] = moments.mean, moments.mean_error, moments.var, moments.var_error
    scalars[StepScalars._fields.index("training")] = 0.0
    evaluated = computed(run.where, run.given._replace(parameters=rows, scalars=scalars))
    output = training_gradient(data, evaluated, moments)
    gone = np.broadcast_to(lost[: case.channels, None], (1, case.channels, 1))
    stored, stored_error = _stored_variance(walk, merged, n=max(float(data.counts.sum()), 1.0))
    whole = np.isfinite(stored)
    output = output._replace(
        mean=moments.mean,
        mean_bound=moments.mean_error,
        var=np.where(whole, stored, 1.0),
        var_bound=np.where(whole, stored_error, np.inf),
    )
    return replace(run, output=output, bad=tuple(mask | gone for mask in run.bad)), infinite


def unmerged(run: StepRun, channels: Bools) -> StepRun:
    """Return the run with nothing decided in channels whose merged variance is not known."""
    output = undecided(run.output, channels)
    return replace(run, output=output._replace(var_bound=np.where(channels, np.inf, output.var_bound)))


def _stored_variance(walk: Walk, merged: encoded_moments.Merged, *, n: float) -> tuple[Floats, Floats]:
    """Return a biased variance of n values that the update makes squares / (count - 1), and its error."""
    unbiased = walk.contract.running_var == "unbiased"
    divided, corrected = (merged.total - 1.0, n - 1.0) if unbiased else (merged.total, n)
    with np.errstate(all="ignore"):
        factor = corrected / (divided * n)
        return merged.squares * factor, merged.squares_error * abs(factor)


def with_half_statistics(case: Case, run: StepRun) -> StepRun:
    """Return the run with moments that are rounded to the input's half dtype."""
    mean, scale, var_error = half_precision.statistics_errors(run.data, run.moments, case.dtype)
    run = run.widened(no_errors(len(mean))._replace(mean=mean, scale=scale))
    output = run.output
    if case.input_layout in STRIDED or case.strided_buffers:  # also in training the buffers' strides count
        output = half_precision.element_errors(run.data, output, run.moments, case.dtype)
    bounds = {"mean_bound": output.mean_bound + mean, "var_bound": output.var_bound + var_error}
    return replace(run, output=output._replace(**bounds))


def with_half_mean(run: StepRun) -> StepRun:
    """Return the run with a mean rounded to float16; one that may overflow in it decides nothing."""
    facts, moments = FACTS["float16"], run.moments
    reached = np.abs(moments.mean) + moments.mean_error
    error = facts.u * reached + facts.underflow
    run = run.widened(no_errors(len(error))._replace(mean=error))
    beyond = reached * (1.0 + facts.u) >= facts.overflow
    output = run.output._replace(mean_bound=np.where(beyond, np.inf, run.output.mean_bound + error))
    return replace(run, output=undecided(output, beyond))

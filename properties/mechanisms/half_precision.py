"""Half precision: statistics, elements and backward sums that are rounded to the input's dtype on the way.

torch's native kernels on the CPU do so (aten/src/ATen/native/Normalization.cpp and cpu/batch_norm_kernel.cpp)
where no float32 parameter comes with a half input (statistics), and where a tensor is not dense (elements,
sums). Each function counts the roundings of those formulas; `u` and `tiny` are those of the half dtype.
"""

from __future__ import annotations

import numpy as np

from properties.mechanisms.carrying import Errors, Moments, scale_of
from properties.mechanisms.step_data import Bools, Floats, StepData
from reference.rounding import FACTS
from reference.signature import StepOutput

MOST_THREADS = 512
"""Of a block, each of which hands one partial sum on at most."""


def statistics_errors(data: StepData, moments: Moments, dtype: str) -> tuple[Floats, Floats, Floats]:
    """Return errors (C,) of mean, 1 / sqrt(var + eps) and variance of a batch, kept in a half `dtype`.

    The mean, the sum of centred squares (in bfloat16), its quotient with n and 1 / sqrt(var + eps) are each
    rounded, and the squares may be centred by the rounded mean.
    """
    half, n = FACTS[dtype], data.scalars.n
    mean_error = half.u * np.abs(moments.mean) + half.underflow
    var_error = 3.0 * half.u * moments.var + (mean_error + moments.mean_error) ** 2
    var_error = var_error + half.underflow * (1.0 + 1.0 / n)
    _, widest = scale_of(data, moments.var, moments.var_error + var_error)
    return mean_error, widest + half.u * (moments.scale + widest) + half.underflow, var_error


def evaluation_error(data: StepData, moments: Moments, dtype: str) -> Floats:
    """Return the error (C,) of 1 / sqrt(var + eps) of an evaluation in a half `dtype`.

    The sum, its root and the quotient are each rounded. A sum next to the smallest number of the dtype may be
    rounded to 0: where what may be left of the radicand is not positive, the error is infinite.
    """
    half = FACTS[dtype]
    rounded = half.u * (moments.var + data.scalars.eps) + half.underflow
    # What that adds to a right subject's own error, beside which it may use up the radicand.
    _, own = scale_of(data, moments.var, moments.var_error)
    _, widest = scale_of(data, moments.var, moments.var_error + rounded)
    with np.errstate(invalid="ignore"):
        error = widest - own + 2.0 * half.u * (moments.scale + widest) + half.underflow
    return np.where(np.isnan(error), np.inf, error)


def buffer_error(new: Floats, old: Floats, momentum: float, dtype: str) -> Floats:
    """Return the error of an update m new + (1 - m) old whose parts are all rounded to `dtype`."""
    half = FACTS[dtype]
    parts = 4.0 * momentum * np.abs(new) + 4.0 * (1.0 - momentum) * np.abs(old)
    return half.u * parts + 4.0 * half.underflow


def element_errors(data: StepData, output: StepOutput, moments: Moments, dtype: str) -> StepOutput:
    """Return `output` with bounds for ((x - mean) * scale) * weight + bias, in `dtype` at each step."""
    half = FACTS[dtype]
    with np.errstate(all="ignore"):
        centred = np.abs(data.x - moments.mean) + moments.mean_error
        xhat = centred * (moments.scale + moments.scale_error)
        scaled = xhat * np.abs(data.weight)
        error = 4.0 * half.u * scaled + half.underflow * (np.abs(data.weight) * (1.0 + moments.scale) + 2.0)
        lost = np.maximum(centred, np.maximum(xhat, scaled)) * (1.0 + 4.0 * half.u) >= half.overflow
        bound = np.where(lost, np.inf, output.y_bound + error)
    return output._replace(y_bound=np.where(np.isnan(bound), np.inf, bound))


def sum_errors(
    data: StepData, output: StepOutput, moments: Moments, dtype: str, *, mixed: bool
) -> tuple[Errors, Bools]:
    """Return the errors of a backward that rounds sums and elements to a half `dtype`, and what overflows.

    sum_g and the dot product of g and x - mean are rounded, and so are k = dot s^2 / n, (x - mean) k, sum_g /
    n and both differences; without float32 parameters (`mixed`) every product is, too, and s.

    Args:
        data: The step of one rank.
        output: Of a right subject.
        moments: What it is normalised with.
        dtype: The half dtype.
        mixed: The parameters are of float32.
    """
    half, s = FACTS[dtype], data.scalars
    u, tiny, n, training = half.u, half.underflow, s.n, s.training > 0.5
    more = 0.0 if mixed else 1.0
    with np.errstate(all="ignore"):
        scale, centred = moments.scale, np.abs(data.x - moments.mean)
        sum_g, dot = np.abs(output.grad_bias), np.abs(output.grad_weight) / np.maximum(scale, s.eta)
        terms = data.by_rank(np.abs(data.g) * centred)
        own_g = u * sum_g + tiny
        dot_error = more * (2.0 * u * terms + tiny * data.by_rank(np.abs(data.g) + 1.0))
        dot_error = dot_error + data.counts * s.u * terms  # added up one by one
        scale_error = more * (2.0 * u * scale + tiny)
        own_gx = dot_error * scale + (dot + dot_error) * scale_error + more * (u * dot * scale + tiny)
        k = dot.sum(axis=0) * scale**2 / n
        k_error = (
            7.0 * u * k + (tiny + dot_error.sum(axis=0)) * scale**2 / n + tiny * ((scale + 1.0) / n + 1.0)
        )
        k_error = k_error + 3.0 * k * scale_error / np.maximum(scale, s.eta)
        g_mean = sum_g.sum(axis=0) / n
        g_mean_error = 3.0 * u * g_mean + tiny * (1.0 + 1.0 / n)
        product = 3.0 * u * centred * k + centred * k_error + tiny * (k + 1.0)
        differences = u * (2.0 * np.abs(data.g) + 2.0 * g_mean + 2.0 * centred * k)
        elements = product + g_mean_error + differences
        after = 3.0 * u * (np.abs(data.g) + (g_mean + centred * k if training else 0.0))
        elements = (elements if training else 0.0) + after
        elements = elements + tiny * (1.0 + 1.0 / np.maximum(scale * np.abs(data.weight), s.eta))
        greatest = np.maximum(
            sum_g, np.maximum(dot + dot_error, (dot + dot_error) * np.maximum(scale, scale**2))
        )
        # x - mean overflows by itself, too, where it is rounded.
        greatest = np.maximum(greatest, data.greatest(np.maximum(more, np.abs(data.g)) * centred))
        lost = (greatest * (1.0 + 8.0 * u) >= half.overflow).any(axis=0) | (training & (n >= half.overflow))
    zero = np.zeros_like(scale)
    return Errors(zero, scale_error, elements, own_g, own_gx), lost


def partial_sum_errors(data: StepData, moments: Moments, dtype: str, levels: Floats) -> tuple[Errors, Bools]:
    """Return the errors of a backward that passes partial sums on in a half `dtype`, and what may overflow.

    The terms g (x - mean) are rounded, and at each level what a thread hands to another: a term goes through
    all of them at most. Threads add up in the accumulation dtype between.

    Args:
        data: The step of the group.
        moments: What it is normalised with.
        dtype: The half dtype.
        levels: On each rank, (ranks, 1); negative where a rank's kernel rounds nothing.
    """
    half, s = FACTS[dtype], data.scalars
    rounds, handed = levels >= 0, np.where(levels > 0, np.minimum(data.counts, MOST_THREADS), 0.0)
    grown, grown_more = ((1.0 + half.u) ** (np.maximum(levels, 0.0) + more) - 1.0 for more in (0.0, 1.0))
    with np.errstate(all="ignore"):
        centred = np.abs(data.x - moments.mean) + moments.mean_error
        magnitudes, terms = data.by_rank(np.abs(data.g)), data.by_rank(np.abs(data.g) * centred)
        own_g = np.where(rounds, grown * magnitudes + half.underflow * handed, 0.0)
        dot = np.where(rounds, grown_more * terms + half.underflow * (handed + data.counts), 0.0)
        scale = moments.scale + moments.scale_error
        elements = own_g.sum(axis=0) / s.n + centred * (dot.sum(axis=0) * scale**2 / s.n)
        elements = elements if s.training > 0.5 else np.zeros_like(elements)
        beyond = np.maximum(magnitudes * (levels > 0), terms) * (1.0 + grown_more) >= half.overflow
    zero = np.zeros_like(moments.scale)
    stored = 1.0 + 4.0 * half.u  # what errs more may be stored one step farther
    lost = np.logical_or.reduce(beyond & rounds, axis=0)
    return Errors(zero, zero, elements, own_g * stored, dot * scale * stored), lost

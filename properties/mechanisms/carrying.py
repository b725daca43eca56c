"""Carrying: how errors of a step's moments and sums reach its output and gradients.

Everything is absolute and by magnitudes. `Errors` are what a mechanism adds to the errors of a right subject,
which the reference's bound holds already:

    y' - y      <= |w| (e_mean (s + e_s) + |x - mean| e_s)
    gw' - gw    <= sum |g| (e_mean (s + e_s) + |x - mean| e_s)
    gx' - gx    <= |w| ((s + e_s) e_inner + |inner| e_s),      inner = g - mean(g) - xhat proj

where s = 1 / sqrt(var + eps), and e_inner collects the errors of xhat and of the projection.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from properties.mechanisms.step_data import Floats, StepData
from reference.signature import StepOutput


class Moments(NamedTuple):
    """What a step normalises with, each (C,): mean, variance, scale 1 / sqrt(var + eps), and their errors."""

    mean: Floats
    mean_error: Floats
    var: Floats
    var_error: Floats
    scale: Floats
    scale_error: Floats


class Errors(NamedTuple):
    """Additional errors of a step, each (C,) unless said.

    Attributes:
        mean, scale: Of what it normalises with.
        elements: Of each inner element of grad_input, (shards, length, C).
        own_g, own_gx: Of a rank's gradients of bias and weight, (ranks, C).
    """

    mean: Floats
    scale: Floats
    elements: Floats | float
    own_g: Floats | float
    own_gx: Floats | float


def no_errors(channels: int) -> Errors:
    """Return zeros."""
    zero = np.zeros(channels)
    return Errors(zero, zero, 0.0, 0.0, 0.0)


def moments_of(data: StepData, mean: tuple[Floats, Floats], var: tuple[Floats, Floats]) -> Moments:
    """Return the moments with their scale, whose error follows from that of the variance."""
    scale, scale_error = scale_of(data, *var)
    return Moments(*mean, *var, scale, scale_error)


def scale_of(data: StepData, var: Floats, var_error: Floats) -> tuple[Floats, Floats]:
    """Return 1 / sqrt(var + eps) and its error, infinite where the radicand may vanish."""
    s = data.scalars
    with np.errstate(all="ignore"):
        scale = 1.0 / np.sqrt(np.maximum(var, 0.0) + s.eps)
        low = var + s.eps - var_error - s.eps_error - 2.0 * s.eta
        widest = np.where(low > 0, 1.0 / np.sqrt(np.where(low > 0, low, 1.0)) - scale, np.inf)
        error = widest + 6.0 * s.u * (scale + widest) + s.eta
    return np.where(np.isfinite(scale), scale, 0.0), np.where(np.isfinite(scale), error, np.inf)


def carried(data: StepData, output: StepOutput, moments: Moments, errors: Errors) -> StepOutput:
    """Return `output` with bounds that cover `errors` as well."""
    with np.errstate(all="ignore"):
        centred = np.abs(data.x - moments.mean)
        widest = moments.scale + moments.scale_error + errors.scale
        xhat_error = errors.mean * widest + centred * errors.scale
        y_error = np.abs(data.weight) * xhat_error
        own_gx = data.by_rank(np.abs(data.g) * xhat_error) + errors.own_gx
        gradient = _grad_input_error(data, output, moments, errors, xhat_error=xhat_error)
    return output._replace(
        y_bound=_stored(data, output.y_bound, y_error),
        grad_input_bound=_stored(data, output.grad_input_bound, gradient),
        grad_weight_bound=_sum(output.grad_weight_bound, own_gx),
        grad_bias_bound=_sum(output.grad_bias_bound, errors.own_g),
    )


def deeper_sums(data: StepData, moments: Moments, extra: Floats) -> Errors:
    """Return the errors of a backward whose sums over a rank meet `extra` more roundings, (ranks, 1)."""
    s = data.scalars
    with np.errstate(all="ignore"):
        scale = moments.scale + moments.scale_error
        xhat = (np.abs(data.x - moments.mean) + moments.mean_error) * scale
        own_g = extra * s.u * data.by_rank(np.abs(data.g))
        own_gx = extra * s.u * data.by_rank(np.abs(data.g) * xhat)
        elements = own_g.sum(axis=0) / s.n + xhat * (own_gx.sum(axis=0) / s.n)
    zero = np.zeros_like(moments.scale)
    return Errors(zero, zero, elements if s.training > 0.5 else 0.0, own_g, own_gx)


def _grad_input_error(
    data: StepData, output: StepOutput, moments: Moments, errors: Errors, *, xhat_error: Floats
) -> Floats:
    s = data.scalars
    scale, widest = moments.scale, moments.scale + moments.scale_error + errors.scale
    xhat = (data.x - moments.mean) * scale
    if s.training > 0.5:
        projection = output.grad_weight.sum(axis=0) / s.n
        g_mean = output.grad_bias.sum(axis=0) / s.n
        gx_error = data.by_rank(np.abs(data.g) * xhat_error).sum(axis=0) / s.n
        inner = data.g - g_mean - xhat * projection
        inner_error = (
            xhat_error * (np.abs(projection) + gx_error)
            + (np.abs(xhat) + xhat_error) * gx_error
            + errors.elements
        )
    else:
        inner, inner_error = data.g, errors.elements + np.zeros_like(data.g)
    error: Floats = np.abs(data.weight) * (
        inner_error * widest + (np.abs(inner) + inner_error) * errors.scale
    )
    return error


def _stored(data: StepData, bound: Floats, error: Floats) -> Floats:
    """Return the bound of a stored result after an additional `error` before storing."""
    return _sum(bound, error * (1.0 + 2.0 * data.scalars.store_u))


def _sum(bound: Floats, error: Floats | float) -> Floats:
    total = bound + error
    return np.where(np.isnan(total), np.inf, total)

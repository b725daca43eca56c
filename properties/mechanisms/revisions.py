"""Revisions: a step's output as a mechanism leaves it, made of the reference's output and the data."""

from __future__ import annotations

import numpy as np

from properties.mechanisms.carrying import Errors, Moments
from properties.mechanisms.step_data import Bools, Floats, StepData
from reference.signature import StepOutput

_GRADIENTS = ("grad_input", "grad_weight", "grad_bias")


def gradients_of(output: StepOutput) -> dict[str, Floats]:
    """Return the fields of the gradients and their bounds."""
    return {name + end: getattr(output, name + end) for name in _GRADIENTS for end in ("", "_bound")}


def finite(errors: Errors) -> Errors:
    """Return `errors` without NaN, which counts as infinite."""
    return Errors(*(np.where(np.isnan(part), np.inf, part) for part in errors))


def undecided(
    output: StepOutput, channels: Bools, *, names: tuple[str, ...] = ("y", *_GRADIENTS)
) -> StepOutput:
    """Return `output` with nothing decided of `names` in `channels`."""
    bounds = {f"{name}_bound": np.where(channels, np.inf, getattr(output, f"{name}_bound")) for name in names}
    return output._replace(**bounds)


def constant(data: StepData, output: StepOutput, channels: Bools) -> StepOutput:
    """Return `output` as an infinite variance makes it in `channels`: the bias, and no gradient but its."""
    s = data.scalars
    parts = np.abs(data.x) + np.abs(data.g) * (np.abs(data.x) + 1.0)
    total = data.by_rank(np.where(np.isfinite(parts), parts, np.inf)).sum(axis=0)
    lost = np.where(total < s.largest / 4.0, 0.0, np.inf)
    tiny = s.eta + s.store_underflow
    y_bound = 2.0 * (s.u + s.store_u) * np.abs(data.bias) + tiny + lost
    chosen: dict[str, tuple[Floats | float, Floats]] = {
        "y": (data.bias + np.zeros_like(data.x), y_bound),
        "grad_input": (0.0, tiny + lost),
        "grad_weight": (0.0, s.eta + lost),
    }
    changes = {}
    for name, (value, bound) in chosen.items():
        changes[name] = np.where(channels, value, getattr(output, name))
        changes[f"{name}_bound"] = np.where(channels, bound, getattr(output, f"{name}_bound"))
    return output._replace(**changes)


def training_gradient(data: StepData, output: StepOutput, moments: Moments) -> StepOutput:
    """Return `output` of an evaluation with these moments with the grad_input that training has with them.

    It follows from the sums that the gradients of weight and bias are.
    """
    s = data.scalars
    with np.errstate(all="ignore"):
        xhat = (data.x - moments.mean) * moments.scale
        widest = moments.scale + moments.scale_error
        shift = moments.mean_error + s.u * (np.abs(data.x) + np.abs(moments.mean))
        away = np.abs(data.x - moments.mean)
        xhat_error = shift * widest + away * moments.scale_error + 2.0 * s.u * np.abs(xhat)
        projection, g_mean = output.grad_weight.sum(axis=0) / s.n, output.grad_bias.sum(axis=0) / s.n
        projection_error = output.grad_weight_bound.sum(axis=0) / s.n + 4.0 * s.u * np.abs(projection)
        g_error = output.grad_bias_bound.sum(axis=0) / s.n + 4.0 * s.u * np.abs(g_mean)
        inner = data.g - g_mean - xhat * projection
        inner_error = (
            g_error
            + xhat_error * (np.abs(projection) + projection_error)
            + np.abs(xhat) * projection_error
            + 6.0 * s.u * (np.abs(data.g) + np.abs(g_mean) + 2.0 * np.abs(xhat * projection))
        )
        value = data.weight * moments.scale * inner
        error = np.abs(data.weight) * (inner_error * widest + np.abs(inner) * moments.scale_error)
        error = error + 4.0 * s.u * np.abs(value) + 8.0 * s.eta * (1.0 + np.abs(data.weight) * widest)
        bound = error + s.store_u * (np.abs(value) + error) + s.store_underflow
        known = np.isfinite(bound + value)
    return output._replace(
        grad_input=np.where(known, value, 0.0), grad_input_bound=np.where(known, bound, np.inf)
    )

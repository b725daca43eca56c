"""Slips in the normalisation of the elements, with weight and bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from properties.diagnosis.plain_batchnorm import Floats, Moments, Step, moments_of, truncated
from properties.diagnosis.slips.left_out_slips import (
    VECTORS,
    Kept,
    without_ends_of_rows,
    without_tail,
    zeroed,
)
from properties.diagnosis.slips.slip import Slip, by_block, by_half, slip
from properties.values.elements import round_to

# The scale


def _of_variance(formula: Callable[[Floats, float], Floats], *, batch: bool = False) -> dict[str, Any]:
    """Return a scale that is another function of variance and eps; of a `batch` only, if asked for."""

    def scale(step: Step, slot: int, moments: Moments) -> Floats:
        del slot
        if batch and not step.batch:
            return np.asarray(1.0 / np.sqrt(moments.var + step.case.eps))
        return formula(moments.var, step.case.eps)

    return {"scale": scale}


def _unbiased_scale(step: Step, slot: int, moments: Moments) -> Floats:
    del slot
    factor = moments.n / (moments.n - 1.0) if step.batch and moments.n > 1 else 1.0
    return np.asarray(1.0 / np.sqrt(moments.var * factor + step.case.eps))


def _half_scale(step: Step, slot: int, moments: Moments) -> Floats:
    del slot
    return round_to(np.asarray(1.0 / np.sqrt(moments.var + step.case.eps)), step.half)


def _half_variance_scale(step: Step, slot: int, moments: Moments) -> Floats:
    del slot
    var = round_to(round_to(moments.var, step.half) + step.case.eps, step.half)
    return np.asarray(1.0 / np.sqrt(var))


# The normalised input


def _centred(mean: Callable[[Step, int, Moments], Floats]) -> dict[str, Any]:
    def normalised(step: Step, slot: int, moments: Moments, scale: Floats) -> Floats:
        return (step.x[slot] - step.across(mean(step, slot, moments))) * step.across(scale)

    return {"normalised": normalised}


def _momentum(step: Step) -> float:
    """Return the share of the step's statistics in the buffers, as torch has it."""
    trained = sum(one.mode == "train" for one in step.case.steps[: step.number + 1])
    return 1.0 / max(trained, 1) if step.case.momentum is None else step.case.momentum


def _own_mean(step: Step, slot: int, moments: Moments) -> Floats:
    return moments_of(step.rows[slot]).mean if step.batch else moments.mean


def _scaled_by_own(step: Step, slot: int, moments: Moments, scale: Floats) -> Floats:
    if step.batch:
        scale = np.asarray(1.0 / np.sqrt(moments_of(step.rows[slot]).var + step.case.eps))
    return (step.x[slot] - step.across(moments.mean)) * step.across(scale)


def _rounded_steps(step: Step, slot: int, moments: Moments, scale: Floats) -> Floats:
    dtype = step.half
    centred = round_to(step.x[slot] - step.across(round_to(moments.mean, dtype)), dtype)
    return round_to(centred * step.across(round_to(scale, dtype)), dtype)


def _rounded_result(step: Step, slot: int, moments: Moments, scale: Floats) -> Floats:
    return round_to((step.x[slot] - step.across(moments.mean)) * step.across(scale), step.half)


# The output


def _output(formula: Callable[[Step, Floats], Floats]) -> dict[str, Any]:
    def output(step: Step, slot: int, xhat: Floats) -> Floats:
        del slot
        return formula(step, xhat)

    return {"output": output}


def _weighed(weight: Callable[[Floats, float], Floats]) -> dict[str, Any]:
    return _output(
        lambda step, xhat: xhat * step.across(weight(step.weight, step.case.eps)) + step.across(step.bias)
    )


def _modulo(size: int) -> Callable[[Step, Floats], Floats]:
    def output(step: Step, xhat: Floats) -> Floats:
        lanes = np.arange(len(step.weight)) % size
        return xhat * step.across(step.weight[lanes]) + step.across(step.bias[lanes])

    return output


def _half_affine(step: Step, slot: int, xhat: Floats) -> Floats:
    """Return round(round(xhat) * weight) + bias."""
    del slot
    weighed = round_to(round_to(xhat, step.half) * step.across(step.weight), step.half)
    return np.asarray(weighed + step.across(step.bias))


def _not_written(kept: Kept) -> dict[str, Any]:
    """Return an output that is zero where what is left out lies."""
    return _output(lambda step, xhat: zeroed(kept, xhat * step.across(step.weight) + step.across(step.bias)))


def _cut(step: Step, values: Floats) -> Floats:
    return truncated(values, step.case.dtype)


def _forward(id: str, words: str, classes: tuple[int, ...], **change: Any) -> Slip:
    return slip(id, words, classes, "forward", **change)


NORMALISE: tuple[Slip, ...] = (
    _forward(
        "unbiased-in-output",
        "normalises with the unbiased variance, which belongs into the buffer alone",
        (7,),
        scale=_unbiased_scale,
    ),
    _forward(
        "own-mean-subtracted",
        "subtracts the rank's own mean, and divides by the deviation of all",
        (4, 15, 19),
        **_centred(_own_mean),
    ),
    _forward(
        "own-deviation",
        "subtracts the mean of all ranks, and divides by the rank's own deviation",
        (4, 15, 19),
        normalised=_scaled_by_own,
    ),
    _forward(
        "mean-not-subtracted",
        "does not subtract the mean",
        (0, 19),
        **_centred(lambda step, slot, moments: np.zeros_like(moments.mean)),
    ),
    _forward(
        "mean-added", "adds the mean in place of subtracting it", (20, 0), **_centred(lambda s, r, m: -m.mean)
    ),
    _forward(
        "mean-times-momentum",
        "multiplies the mean by the momentum before it is subtracted",
        (21, 17),
        **_centred(lambda step, slot, moments: moments.mean * _momentum(step)),
    ),
    _forward(
        "multiplied-by-deviation",
        "multiplies by the deviation in place of dividing by it",
        (19, 0),
        **_of_variance(lambda var, eps: np.sqrt(var + eps)),
    ),
    _forward(
        "divided-by-variance",
        "divides by the variance, without a root",
        (19, 0),
        **_of_variance(lambda var, eps: 1.0 / (var + eps)),
    ),
    _forward(
        "eps-as-a-floor",
        "takes the greater of variance and eps in place of their sum",
        (16,),
        **_of_variance(lambda var, eps: 1.0 / np.sqrt(np.maximum(var, eps))),
    ),
    _forward(
        "eps-floor-of-deviation",
        "takes the greater of deviation and eps",
        (16,),
        **_of_variance(lambda var, eps: 1.0 / np.maximum(np.sqrt(var), eps)),
    ),
    _forward(
        "eps-twice-in-training",
        "adds eps twice in training",
        (16,),
        **_of_variance(lambda var, eps: 1.0 / np.sqrt(var + 2.0 * eps), batch=True),
    ),
    _forward(
        "eps-squared",
        "adds the square of eps",
        (16,),
        **_of_variance(lambda var, eps: 1.0 / np.sqrt(var + eps * eps)),
    ),
    _forward(
        "root-of-eps",
        "adds the roots of variance and eps",
        (16,),
        **_of_variance(lambda var, eps: 1.0 / (np.sqrt(var) + np.sqrt(eps))),
    ),
    _forward(
        "eps-subtracted",
        "subtracts eps",
        (16, 20),
        **_of_variance(lambda var, eps: 1.0 / np.sqrt(var - eps)),
    ),
    *by_half(
        "mean-in-half",
        "rounds the mean to {} before it is subtracted",
        (13,),
        "forward",
        **_centred(lambda step, slot, moments: round_to(moments.mean, step.half)),
    ),
    *by_half("scale-in-half", "rounds 1 / deviation to {}", (13,), "forward", scale=_half_scale),
    *by_half(
        "variance-in-half",
        "rounds the variance to {} before its root",
        (13,),
        "forward",
        scale=_half_variance_scale,
    ),
    *by_half(
        "steps-in-half",
        "computes the elements step by step in {}",
        (13,),
        "forward",
        normalised=_rounded_steps,
    ),
    *by_half(
        "normalised-in-half",
        "rounds the normalised input to {} before weight and bias",
        (13,),
        "forward",
        normalised=_rounded_result,
    ),
    *by_half(
        "affine-in-half",
        "rounds the normalised input, and its product with the weight, to {}",
        (13,),
        "forward",
        output=_half_affine,
    ),
    *by_block(
        "output-tail-not-written",
        "leaves the output zero in the last values of a rank, where they do not fill a block{}",
        (26, 22, 0),
        "forward",
        lambda block: _not_written(without_tail(block, alone=False)),
    ),
    *by_block(
        "output-tail-not-written-alone",
        "leaves the output zero in the last values of a rank, where they do not fill a block{}, and in all "
        "of fewer",
        (26, 22, 0),
        "forward",
        lambda block: _not_written(without_tail(block, alone=True)),
    ),
    *by_block(
        "output-ends-of-rows-not-written",
        "leaves the output zero in the last positions of each sample, where they do not fill a vector{}",
        (26, 22, 0),
        "forward",
        lambda block: _not_written(without_ends_of_rows(block)),
        VECTORS,
    ),
    _forward(
        "output-cut",
        "cuts its output to the half dtype in place of rounding it to nearest",
        (13, 0),
        stored=_cut,
    ),
    _forward(
        "weight-and-eps", "multiplies by |weight| + eps", (20,), **_weighed(lambda w, eps: np.abs(w) + eps)
    ),
    _forward("weight-about-one", "multiplies by 1 + weight", (20,), **_weighed(lambda w, eps: 1.0 + w)),
    _forward("weight-squared", "multiplies by the weight twice", (20,), **_weighed(lambda w, eps: w * w)),
    *by_half(
        "parameters-in-half",
        "rounds weight and bias to {}",
        (13,),
        "forward",
        **_output(
            lambda step, xhat: (
                xhat * step.across(round_to(step.weight, step.half))
                + step.across(round_to(step.bias, step.half))
            )
        ),
    ),
    *(
        _forward(
            f"parameters-of-channel-modulo-{size}",
            f"gives channel c weight and bias of channel c modulo {size}",
            (19, 23),
            **_output(_modulo(size)),
        )
        for size in (2, 4, 8, 16, 32, 64)
    ),
    _forward(
        "bias-subtracted",
        "subtracts the bias",
        (20,),
        **_output(lambda step, xhat: xhat * step.across(step.weight) - step.across(step.bias)),
    ),
    _forward(
        "bias-weighted",
        "multiplies the bias by the weight, too",
        (20,),
        **_output(lambda step, xhat: (xhat + step.across(step.bias)) * step.across(step.weight)),
    ),
    _forward(
        "bias-twice",
        "adds the bias twice",
        (20,),
        **_output(lambda step, xhat: xhat * step.across(step.weight) + 2.0 * step.across(step.bias)),
    ),
)

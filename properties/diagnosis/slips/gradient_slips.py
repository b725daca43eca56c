"""Slips in the elements of the input's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from properties.diagnosis.plain_batchnorm import (
    Backward,
    Floats,
    Step,
    corrected,
)
from properties.diagnosis.slips.slip import Slip, slip


def _backward(id: str, words: str, classes: tuple[int, ...], **change: Any) -> Slip:
    return slip(id, words, classes, "backward", **change)


def terms_of(step: Step, of: Backward) -> tuple[Floats, Floats]:
    """Return the mean of g and xhat times the mean of g xhat."""
    n = max(step.total, 1.0)
    return step.across(of.sums.cotangent / n), of.xhat * step.across(of.sums.projection / n)


def _terms(cotangent: float, projection: float) -> dict[str, Any]:
    """Return a gradient whose two subtracted terms are multiplied by these."""

    def gradient(step: Step, slot: int, of: Backward) -> Floats:
        first, second = terms_of(step, of)
        inner = step.g[slot] - cotangent * first - projection * second if step.batch else step.g[slot]
        return np.asarray(inner * step.across(step.weight * of.scale))

    return {"gradient": gradient}


def projected(change: Callable[[Step, int, Backward], Floats]) -> dict[str, Any]:
    """Return a gradient in which something else stands for xhat, in the term of g xhat."""

    def gradient(step: Step, slot: int, of: Backward) -> Floats:
        inner = step.g[slot]
        if step.batch:
            first, _ = terms_of(step, of)
            inner = (
                inner
                - first
                - change(step, slot, of) * step.across(of.sums.projection / max(step.total, 1.0))
            )
        return np.asarray(inner * step.across(step.weight * of.scale))

    return {"gradient": gradient}


def scaled(factor: Callable[[Step, Backward], Floats], *, training: bool = False) -> dict[str, Any]:
    """Return a gradient with another factor than weight times scale."""

    def gradient(step: Step, slot: int, of: Backward) -> Floats:
        inner = corrected(step, slot, of) if step.batch else step.g[slot]
        right = training and not step.batch
        return inner * step.across(step.weight * of.scale if right else factor(step, of))

    return {"gradient": gradient}


def _counted(count: Callable[[Step, int], float]) -> dict[str, Any]:
    """Return a gradient whose sums are divided by another count."""

    def gradient(step: Step, slot: int, of: Backward) -> Floats:
        inner = corrected(step, slot, of, count=count(step, slot)) if step.batch else step.g[slot]
        return inner * step.across(step.weight * of.scale)

    return {"gradient": gradient}


def usual_gradient(step: Step, slot: int, of: Backward) -> Floats:
    """Return the right gradient of what the lines before gave."""
    inner = corrected(step, slot, of) if step.batch else step.g[slot]
    return inner * step.across(step.weight * of.scale)


def _one_less_of_projection(step: Step, slot: int, of: Backward) -> Floats:
    if not step.batch:
        return usual_gradient(step, slot, of)
    first, second = terms_of(step, of)
    inner = step.g[slot] - first - second * (step.total / max(step.total - 1.0, 1.0))
    return np.asarray(inner * step.across(step.weight * of.scale))


def _of_training(step: Step, slot: int, of: Backward) -> Floats:
    """Return the gradient of training, in an evaluation with the rank's own sums."""
    count = step.total if step.batch else float(step.counts[slot])
    return corrected(step, slot, of, count=count) * step.across(step.weight * of.scale)


def _own_chain(step: Step, slot: int, of: Backward) -> Floats:
    """Return what the chain rule gives where the statistics' gradients are the rank's own terms alone.

    x - mean does not sum to zero over one rank, so that the variance has a part in the mean's gradient.
    """
    if not step.batch:
        return usual_gradient(step, slot, of)
    n = max(step.total, 1.0)
    centred = step.x[slot] - step.across(of.moments.mean)
    scaled = step.weight * of.scale
    square = -0.5 * scaled * of.own.projection * of.scale / n
    mean = -scaled * of.own.cotangent - 2.0 * square * centred.sum(axis=(0, 2))
    return step.g[slot] * step.across(scaled) + 2.0 * centred * step.across(square) + step.across(mean / n)


def _cut_by_own_size(step: Step, slot: int, of: Backward) -> Floats:
    """Return the part of all ranks' gradients that begins at the slot times the rank's own size."""
    if len(step.members) == 1 or not step.batch:
        return usual_gradient(step, slot, of)
    if len({x.shape[2] for x in step.x}) > 1:  # such tensors are not joined
        return np.full_like(step.x[slot], np.nan)
    g, x = np.concatenate(step.g), np.concatenate(step.x)
    xhat = (x - step.across(of.moments.mean)) * step.across(of.scale)
    n = max(step.total, 1.0)
    whole = (g - step.across(of.sums.cotangent / n) - xhat * step.across(of.sums.projection / n)) * (
        step.across(step.weight * of.scale)
    )
    samples = len(step.x[slot])
    part = whole[slot * samples : (slot + 1) * samples]
    return part if part.shape == step.x[slot].shape else np.full_like(step.x[slot], np.nan)


ELEMENTS: tuple[Slip, ...] = (
    _backward("mean-of-g-left-out", "leaves the mean of g out of grad_input", (5, 0), **_terms(0.0, 1.0)),
    _backward(
        "cotangent-scaled-alone",
        "multiplies g by weight / deviation, and not the two terms that are subtracted from it",
        (20, 0),
        gradient=lambda step, slot, of: (
            step.g[slot] * step.across(step.weight * of.scale)
            - (sum(terms_of(step, of)) if step.batch else 0.0)
        ),
    ),
    _backward("projection-left-out", "leaves the term of xhat out of grad_input", (5, 0), **_terms(1.0, 0.0)),
    _backward(
        "statistics-as-constants",
        "takes the statistics for constants in grad_input: both of its terms are missing",
        (5, 0),
        **_terms(0.0, 0.0),
    ),
    _backward(
        "projection-added",
        "adds the term of xhat to grad_input in place of subtracting it",
        (20, 0),
        **_terms(1.0, -1.0),
    ),
    _backward(
        "mean-of-g-added",
        "adds the mean of g to grad_input in place of subtracting it",
        (20, 0),
        **_terms(-1.0, 1.0),
    ),
    _backward("terms-added", "adds both terms to grad_input", (20, 0), **_terms(-1.0, -1.0)),
    _backward("projection-doubled", "subtracts the term of xhat twice", (0, 20), **_terms(1.0, 2.0)),
    _backward("projection-halved", "subtracts half of the term of xhat", (0, 20), **_terms(1.0, 0.5)),
    _backward("mean-of-g-doubled", "subtracts the mean of g twice", (0, 20), **_terms(2.0, 1.0)),
    _backward(
        "variance-for-invstd-in-gradient",
        "multiplies grad_input by the variance in place of 1 / deviation",
        (19, 0),
        **scaled(lambda step, of: step.weight * of.moments.var),
    ),
    _backward(
        "shifted-variance-for-invstd",
        "multiplies grad_input by variance + eps in place of 1 / deviation",
        (19, 0),
        **scaled(lambda step, of: step.weight * (of.moments.var + step.case.eps)),
    ),
    _backward(
        "deviation-for-invstd",
        "multiplies grad_input by the deviation in place of dividing by it",
        (19, 0),
        **scaled(lambda step, of: step.weight / of.scale),
    ),
    _backward(
        "invstd-squared",
        "divides grad_input by the variance, not by the deviation",
        (19, 0),
        **scaled(lambda step, of: step.weight * of.scale**2),
    ),
    _backward(
        "invstd-left-out",
        "leaves 1 / deviation out of grad_input",
        (19, 0),
        **scaled(lambda step, of: step.weight),
    ),
    _backward(
        "scale-without-eps",
        "leaves eps out of grad_input",
        (16,),
        **scaled(lambda step, of: step.weight / np.sqrt(of.moments.var)),
    ),
    _backward(
        "weight-left-out-of-gradient",
        "leaves the weight out of grad_input",
        (20,),
        **scaled(lambda step, of: of.scale),
    ),
    _backward(
        "weight-twice-in-gradient",
        "multiplies grad_input by the weight twice",
        (20,),
        **scaled(lambda step, of: step.weight**2 * of.scale),
    ),
    _backward(
        "absolute-weight-in-gradient",
        "multiplies grad_input by |weight|",
        (20,),
        **scaled(lambda step, of: np.abs(step.weight) * of.scale),
    ),
    _backward(
        "negated-gradient",
        "gives grad_input with the wrong sign",
        (20, 0),
        **scaled(lambda step, of: -step.weight * of.scale),
    ),
    _backward(
        "unbiased-invstd-in-gradient",
        "scales grad_input by the unbiased deviation",
        (7,),
        **scaled(
            lambda step, of: (
                step.weight
                / np.sqrt(
                    of.moments.var * (of.moments.n / (of.moments.n - 1) if of.moments.n > 1 else 1)
                    + step.case.eps
                )
            ),
            training=True,
        ),
    ),
    _backward(
        "one-less-divides",
        "divides the backward sums by n - 1",
        (2, 7),
        **_counted(lambda step, slot: step.total - 1.0),
    ),
    _backward(
        "one-less-divides-projection",
        "divides the sum of g xhat by n - 1",
        (2, 7),
        gradient=_one_less_of_projection,
    ),
    _backward(
        "whole-mean-count-divides",
        "divides the backward sums by the ranks times their whole mean count",
        (2,),
        **_counted(lambda step, slot: len(step.members) * float(step.total // len(step.members))),
    ),
    _backward(
        "own-count-divides",
        "divides the sums of all ranks by the rank's own count",
        (2,),
        **_counted(lambda step, slot: float(step.counts[slot])),
    ),
    _backward(
        "samples-divide",
        "divides the backward sums by the samples of all ranks, not by their values",
        (2, 0),
        **_counted(lambda step, slot: float(sum(x.shape[0] for x in step.x))),
    ),
    _backward(
        "ranks-times-own-count-divides",
        "divides the backward sums by the rank's own count times the ranks",
        (2,),
        **_counted(lambda step, slot: float(step.counts[slot]) * len(step.members)),
    ),
    _backward(
        "ranks-divide",
        "divides the backward sums by the number of ranks",
        (2, 6),
        **_counted(lambda step, slot: float(len(step.members))),
    ),
    _backward(
        "centred-not-scaled",
        "multiplies the mean of g xhat by x - mean in place of xhat",
        (0, 19),
        **projected(lambda step, slot, of: step.x[slot] - step.across(of.moments.mean)),
    ),
    _backward(
        "scaled-twice",
        "multiplies the mean of g xhat by xhat / deviation in place of xhat",
        (0, 19),
        **projected(lambda step, slot, of: of.xhat * step.across(of.scale)),
    ),
    _backward(
        "input-for-xhat",
        "multiplies the mean of g xhat by x in place of xhat",
        (0, 19),
        **projected(lambda step, slot, of: step.x[slot]),
    ),
    _backward(
        "output-for-xhat",
        "multiplies the mean of g xhat by the output in place of xhat",
        (0, 19, 20),
        **projected(lambda step, slot, of: of.xhat * step.across(step.weight) + step.across(step.bias)),
    ),
    _backward(
        "gradients-of-statistics-not-reduced",
        "does not reduce the gradients of the statistics: an all_reduce whose backward is the identity",
        (5, 4),
        gradient=_own_chain,
    ),
    _backward(
        "gradient-of-training-in-evaluation",
        "gives an evaluation's grad_input the terms of training, though the buffers are constants",
        (0, 18),
        gradient=_of_training,
    ),
    _backward(
        "part-by-own-size",
        "cuts the rank's part out of all gradients at its number times its own size",
        (19, 1, 2, 9),
        gradient=_cut_by_own_size,
    ),
)

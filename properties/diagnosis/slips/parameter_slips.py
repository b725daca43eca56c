"""Slips in the gradients of weight and bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from properties.diagnosis.plain_batchnorm import (
    Backward,
    Floats,
    Step,
    Sums,
)
from properties.diagnosis.slips.left_out_slips import without_tail
from properties.diagnosis.slips.slip import Slip, by_block, slip
from properties.diagnosis.slips.sum_slips import sums_of


def _affine(
    id: str,
    words: str,
    classes: tuple[int, ...],
    change: Callable[[Step, int, Backward], tuple[Floats, Floats]],
) -> Slip:
    def parameters(step: Step, slot: int, of: Backward, parts: Sequence[Sums]) -> tuple[Floats, Floats]:
        del parts
        return change(step, slot, of)

    return slip(id, words, classes, "affine", parameters=parameters)


def _against(values: Callable[[Step, int, Backward], Floats]) -> Callable[..., tuple[Floats, Floats]]:
    """Return gradients in which the weight's is the sum of g times something else than xhat."""

    def change(step: Step, slot: int, of: Backward) -> tuple[Floats, Floats]:
        return (step.g[slot] * values(step, slot, of)).sum(axis=(0, 2)), of.own.cotangent

    return change


def _multiplied(
    weight: Callable[[Step, int, Backward], Any] | None = None,
    bias: Callable[[Step, int, Backward], Any] | None = None,
) -> Callable[..., tuple[Floats, Floats]]:
    def change(step: Step, slot: int, of: Backward) -> tuple[Floats, Floats]:
        return (
            of.own.projection * (weight(step, slot, of) if weight else 1.0),
            of.own.cotangent * (bias(step, slot, of) if bias else 1.0),
        )

    return change


def _over(count: Callable[[Step, int], float]) -> Callable[[Step, int, Backward], Any]:
    return lambda step, slot, of: 1.0 / max(count(step, slot), 1.0)


def _tail(block: int, *, alone: bool) -> dict[str, Any]:
    sums = sums_of(without_tail(block, alone=alone))

    def parameters(step: Step, slot: int, of: Backward, parts: Sequence[Sums]) -> tuple[Floats, Floats]:
        del parts
        found = sums(step, slot, of.xhat, of.scale)
        return found.projection, found.cotangent

    return {"parameters": parameters}


PARAMETERS: tuple[Slip, ...] = (
    _affine(
        "weight-gradient-unscaled",
        "sums g (x - mean) for grad_weight, without 1 / deviation",
        (0, 20),
        _multiplied(weight=lambda step, slot, of: 1.0 / of.scale),
    ),
    _affine(
        "weight-gradient-scaled-twice",
        "divides grad_weight by the deviation twice",
        (0, 20),
        _multiplied(weight=lambda step, slot, of: of.scale),
    ),
    _affine(
        "weight-gradient-of-input",
        "sums g x for grad_weight in place of g xhat",
        (0, 20),
        _against(lambda step, slot, of: step.x[slot]),
    ),
    _affine(
        "weight-gradient-of-scaled-input",
        "sums g x / deviation for grad_weight: the mean is not subtracted",
        (0, 20),
        _against(lambda step, slot, of: step.x[slot] * step.across(of.scale)),
    ),
    _affine(
        "weight-gradient-of-output",
        "sums g times the output for grad_weight in place of g xhat",
        (0, 20),
        _against(lambda step, slot, of: of.xhat * step.across(step.weight) + step.across(step.bias)),
    ),
    _affine(
        "weight-gradient-weighted",
        "multiplies grad_weight by the weight",
        (20, 0),
        _multiplied(weight=lambda step, slot, of: step.weight),
    ),
    _affine(
        "bias-gradient-weighted",
        "multiplies grad_bias by the weight",
        (20, 0),
        _multiplied(bias=lambda step, slot, of: step.weight),
    ),
    _affine(
        "bias-gradient-scaled",
        "divides grad_bias by the deviation",
        (20, 0),
        _multiplied(bias=lambda step, slot, of: of.scale),
    ),
    _affine(
        "parameter-gradients-averaged",
        "divides the gradients of weight and bias by the rank's values",
        (0, 6),
        _multiplied(
            weight=_over(lambda step, slot: float(step.counts[slot])),
            bias=_over(lambda step, slot: float(step.counts[slot])),
        ),
    ),
    *(
        _affine(
            f"{name}-gradient-{end}",
            f"divides grad_{name} by the rank's {what}",
            (0, 6),
            _multiplied(**{name: _over(count)}),
        )
        for name in ("weight", "bias")
        for end, what, count in (
            ("over-values", "values", lambda step, slot: float(step.counts[slot])),
            ("over-samples", "samples", lambda step, slot: float(len(step.x[slot]))),
        )
    ),
    _affine(
        "parameter-gradients-over-samples",
        "divides the gradients of weight and bias by the rank's samples",
        (0, 6),
        _multiplied(
            weight=_over(lambda step, slot: float(len(step.x[slot]))),
            bias=_over(lambda step, slot: float(len(step.x[slot]))),
        ),
    ),
    _affine(
        "parameter-gradients-over-all-values",
        "divides the gradients of weight and bias by the values of all ranks",
        (0, 6),
        _multiplied(weight=_over(lambda step, slot: step.total), bias=_over(lambda step, slot: step.total)),
    ),
    _affine(
        "negated-weight-gradient",
        "gives grad_weight with the wrong sign",
        (20, 0),
        _multiplied(weight=lambda step, slot, of: -1.0),
    ),
    _affine(
        "negated-bias-gradient",
        "gives grad_bias with the wrong sign",
        (20, 0),
        _multiplied(bias=lambda step, slot, of: -1.0),
    ),
    *by_block(
        "parameter-sums-without-tail",
        "leaves the last values of a rank out of the gradients of weight and bias, where they do not fill a "
        "block{}",
        (26, 22, 0),
        "affine",
        lambda block: _tail(block, alone=False),
    ),
    *by_block(
        "parameter-sums-without-tail-alone",
        "leaves the last values of a rank out of the gradients of weight and bias, where they do not fill a "
        "block{}, and all of fewer",
        (26, 22, 0),
        "affine",
        lambda block: _tail(block, alone=True),
    ),
)

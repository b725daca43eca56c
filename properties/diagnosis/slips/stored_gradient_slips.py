"""Slips in how the input's gradient is rounded and stored."""

from __future__ import annotations

from typing import Any

from properties.diagnosis.plain_batchnorm import Backward, Floats, Step, truncated
from properties.diagnosis.slips.gradient_slips import projected, scaled, terms_of, usual_gradient
from properties.diagnosis.slips.left_out_slips import (
    VECTORS,
    Kept,
    without_ends_of_rows,
    without_tail,
    zeroed,
)
from properties.diagnosis.slips.slip import BLOCKS, Slip, by_block, by_half, slip
from properties.values.elements import round_to


def _not_written(kept: Kept) -> dict[str, Any]:
    """Return a gradient that is zero where what is left out lies."""
    return {"gradient": lambda step, slot, of: zeroed(kept, usual_gradient(step, slot, of))}


def _cut(step: Step, values: Floats) -> Floats:
    return truncated(values, step.case.dtype)


def _half_scaled(step: Step, of: Backward) -> Floats:
    return round_to(step.weight * of.scale, step.half)


def _steps_in_half(step: Step, slot: int, of: Backward) -> Floats:
    dtype = step.half
    inner = step.g[slot]
    if step.batch:
        first, second = terms_of(step, of)
        inner = round_to(inner - round_to(first, dtype) - round_to(second, dtype), dtype)
    return inner * step.across(_half_scaled(step, of))


def _half_xhat(step: Step, slot: int, of: Backward) -> Floats:
    del slot
    return round_to(of.xhat, step.half)


STORED: tuple[Slip, ...] = (
    *by_block(
        "tail-not-written",
        "leaves grad_input zero in the last values of a rank, where they do not fill a block{}",
        (26, 22),
        "backward",
        lambda block: _not_written(without_tail(block, alone=False)),
        BLOCKS,
    ),
    *by_block(
        "tail-not-written-alone",
        "leaves grad_input zero in the last values of a rank, where they do not fill a block{}, and in all "
        "of fewer",
        (26, 22),
        "backward",
        lambda block: _not_written(without_tail(block, alone=True)),
        BLOCKS,
    ),
    *by_block(
        "ends-of-rows-not-written",
        "leaves grad_input zero in the last positions of each sample, where they do not fill a vector{}",
        (26, 22),
        "backward",
        lambda block: _not_written(without_ends_of_rows(block)),
        VECTORS,
    ),
    slip(
        "gradient-cut",
        "cuts grad_input to the half dtype in place of rounding it to nearest",
        (13, 0),
        "backward",
        stored_gradient=_cut,
    ),
    *by_half(
        "gradient-scale-in-half",
        "rounds weight / deviation to {} in grad_input",
        (13,),
        "backward",
        **scaled(_half_scaled),
    ),
    *by_half(
        "gradient-xhat-in-half",
        "rounds xhat to {} in grad_input",
        (13,),
        "backward",
        **projected(_half_xhat),
    ),
    *by_half(
        "gradient-steps-in-half",
        "computes grad_input step by step in {}",
        (13,),
        "backward",
        gradient=_steps_in_half,
    ),
)

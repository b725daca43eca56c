"""Facts: named numbers and words about a case, which the predicate of a known discrepancy may ask for.

Four scopes: a fact of the case, of one process group of it, of one step in a process group, or of one channel
in such a step. A predicate holds or not step by step: what holds in one step excuses nothing in another.
Adding a fact is one entry in `FACTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.mechanisms.cuda_kernels import (
    extra_depth,
    halves_mean,
    halves_partial_sums,
    loses_strided_update,
)
from properties.mechanisms.native_kernels import (
    STRIDED,
    adds_one_by_one,
    extra_backward_depth,
    is_ambiguous,
)
from properties.values.elements import tensors

Floats = NDArray[np.float64]
Group = tuple[int, ...]
Scope = Literal["case", "group", "step", "channel"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: its scope, how it is read off a case, a process group and a step, and what it says."""

    scope: Scope
    read: Callable[[Case, Group, int], Any]
    text: str


@lru_cache(maxsize=64)
def _moments(case: Case, group: Group, step: int) -> tuple[Floats, Floats]:
    """Return the smallest local and the global variance of a training step, each (C,); NaN in any other step.

    A variance of equal values is exactly zero here, whatever the rounding of their mean.
    """
    parts = [
        np.moveaxis(tensors(case, rank, step=step)[0], 1, 0).reshape(case.channels, -1)
        for rank in group
        if case.at(step).count_of(rank) and case.steps[step].mode == "train"
    ]
    if not parts:
        return np.full(case.channels, np.nan), np.full(case.channels, np.nan)
    local = np.min([_variance(part) for part in parts], axis=0)
    return local, _variance(np.concatenate(parts, axis=1))


def _variance(values: Floats) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        constant = values.max(axis=1) == values.min(axis=1)
        return np.where(constant, 0.0, values.var(axis=1))


def _over_eps(values: Floats, case: Case) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return values / case.eps


def _stale_buffers(case: Case, k: int) -> bool:
    """Whether step k is an evaluation whose backward is deferred past the forward of a training step."""
    step, later = case.steps[k], case.steps[k + 1 :]
    deferred = step.mode == "eval" and step.backward == "deferred"
    return case.tracking and deferred and bool(later) and later[0].mode == "train"


def _halves_partial_sums(case: Case, group: Group, rank: int, k: int) -> bool:
    training = case.steps[k].mode == "train"
    synchronised = training and len(group) > 1
    return halves_partial_sums(
        case.at(k), rank, synchronised=synchronised, training=training or not case.tracking
    )


def _of_case(read: Callable[[Case], Any], text: str) -> Fact:
    return Fact("case", lambda case, group, step: read(case), text)


def _of_group(read: Callable[[Case, Group], Any], text: str) -> Fact:
    return Fact("group", lambda case, group, step: read(case, group), text)


def _of_step(read: Callable[[Case, Group, int], Any], text: str) -> Fact:
    return Fact("step", read, text)


def _of_channel(read: Callable[[Case, Group, int], Floats], text: str) -> Fact:
    return Fact("channel", read, text)


FACTS: dict[str, Fact] = {
    "input_dtype": _of_case(lambda c: c.dtype, "dtype of the input"),
    "param_dtype": _of_case(lambda c: c.param_dtype, "dtype of weight and bias"),
    "buffer_dtype": _of_case(lambda c: c.param_dtype, "dtype of the running buffers"),
    "eps": _of_case(lambda c: c.eps, "eps"),
    "momentum": _of_case(lambda c: c.momentum, "momentum (no number when it is None)"),
    "momentum_none": _of_case(lambda c: c.momentum is None, "momentum is None"),
    "tracking": _of_case(lambda c: c.tracking, "track_running_stats"),
    "affine": _of_case(lambda c: c.affine, "both, weight or none"),
    "frozen": _of_case(lambda c: len(c.frozen), "number of frozen parameters"),
    "ragged_grad": _of_case(lambda c: c.ragged_grad, "the input requires a gradient on some ranks only"),
    "world_size": _of_case(lambda c: c.world_size, "number of ranks"),
    "channels": _of_case(lambda c: c.channels, "number of channels"),
    "dims": _of_case(lambda c: 2 + len(c.spatial[0]), "number of dimensions of the input"),
    "wrong": _of_case(lambda c: c.wrong, "what makes the input one to be refused"),
    "recompute": _of_step(lambda c, g, k: c.steps[k].recompute, "the step is recomputed"),
    "deferred": _of_step(lambda c, g, k: c.steps[k].backward == "deferred", "its backward is deferred"),
    "accumulate": _of_step(lambda c, g, k: c.steps[k].accumulate, "parameter gradients accumulate in it"),
    "eval": _of_step(lambda c, g, k: c.steps[k].mode == "eval", "the step is in evaluation mode"),
    "train": _of_step(lambda c, g, k: c.steps[k].mode == "train", "the step is in training mode"),
    "steps": _of_case(lambda c: len(c.steps), "number of steps"),
    "values": _of_case(lambda c: c.values, "family of the input's values"),
    "specials": _of_case(lambda c: len(c.specials), "number of special elements"),
    "input_layout": _of_case(lambda c: c.input_layout, "memory layout of the input"),
    "cotangent_layout": _of_case(lambda c: c.cotangent_layout, "memory layout of the cotangent"),
    "unlike_layouts": _of_case(
        lambda c: (
            (c.input_layout, c.cotangent_layout)
            not in (("contiguous", "contiguous"), ("channels_last", "channels_last"))
        ),
        "input and cotangent are not both contiguous, nor both channels_last",
    ),
    "strided_forward": _of_case(
        lambda c: c.input_layout in STRIDED or c.strided_buffers,
        "input or running buffers are strided, so that torch's native kernel indexes every element",
    ),
    "strided_buffers": _of_case(lambda c: c.strided_buffers, "running buffers are not contiguous"),
    "widest_dtype": _of_case(
        lambda c: c.param_dtype if c.has_weight or c.tracking else c.dtype,
        "widest dtype among input, parameters and buffers",
    ),
    "stale_buffers": _of_step(
        lambda c, g, k: _stale_buffers(c, k),
        "the backward of an evaluation step with buffers runs after a later training step changed them",
    ),
    "probe": _of_case(lambda c: c.probe, "additional run of the case"),
    "group_size": _of_group(lambda c, g: len(g), "ranks in the process group"),
    "unsynchronised": _of_step(
        lambda c, g, k: len(g) == 1 or c.steps[k].mode == "eval",
        "the step needs no other rank: an evaluation step, or any in a group of one rank",
    ),
    "own_statistics": _of_step(
        lambda c, g, k: len(g) == 1 if c.steps[k].mode == "train" else not c.tracking,
        "a rank normalises by its own batch: training in a group of one rank, evaluation without buffers",
    ),
    "ambiguous_layout": _of_step(
        lambda c, g, k: any(is_ambiguous(c.at(k), r) for r in g),
        "input and cotangent are contiguous in different memory formats that one sample does not tell apart",
    ),
    "adds_one_by_one": _of_step(
        lambda c, g, k: any(adds_one_by_one(c.at(k), r) for r in g),
        "torch's native kernel adds up one by one, in no wider dtype: all but dense float32",
    ),
    "deep_backward": _of_step(
        lambda c, g, k: any(extra_backward_depth(c.at(k), r) > 0 for r in g),
        "torch's native backward adds up more one by one than grade A admits: a batch, or a plane's lanes",
    ),
    "half_partial_sums": _of_step(
        lambda c, g, k: any(_halves_partial_sums(c, g, r, k) for r in g),
        "a block's threads pass partial sums of the backward on in the input's half dtype",
    ),
    "half_mean": _of_step(
        lambda c, g, k: any(halves_mean(c.at(k), r) for r in g),
        "torch gives the moments of a strided float16 input, where a rank is alone, to var_mean on CUDA",
    ),
    "loses_strided_update": _of_step(
        lambda c, g, k: any(loses_strided_update(c.at(k), r) for r in g),
        "torch gives the step to cuDNN, where a rank is alone, and its running buffers are strided",
    ),
    "narrow_blocks": _of_step(
        lambda c, g, k: any(extra_depth(c.at(k), r) > 0 for r in g),
        "fewer threads of a block of torch's CUDA kernels have values than grade A takes for busy",
    ),
    "empty_ranks": _of_step(
        lambda c, g, k: sum(c.at(k).count_of(r) == 0 for r in g), "ranks of the process group without values"
    ),
    "total_count": _of_step(lambda c, g, k: c.at(k).total_of(g), "values a channel in the process group"),
    "max_count": _of_step(
        lambda c, g, k: max(c.at(k).count_of(r) for r in g),
        "values a channel on the fullest rank of the group",
    ),
    "min_count": _of_step(
        lambda c, g, k: min((n for r in g if (n := c.at(k).count_of(r))), default=0),
        "values a channel on the emptiest rank of the group that has any",
    ),
    "channel_min_local_var": _of_channel(
        lambda c, g, k: _moments(c, g, k)[0], "smallest variance of the channel on any rank, in training"
    ),
    "channel_min_local_var_over_eps": _of_channel(
        lambda c, g, k: _over_eps(_moments(c, g, k)[0], c), "the same divided by eps"
    ),
    "channel_global_var": _of_channel(
        lambda c, g, k: _moments(c, g, k)[1], "variance of the channel over the group, in training"
    ),
    "channel_global_var_over_eps": _of_channel(
        lambda c, g, k: _over_eps(_moments(c, g, k)[1], c), "the same divided by eps"
    ),
}

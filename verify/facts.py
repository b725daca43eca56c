"""Facts: named numbers and words about a case, which the predicate of a known discrepancy may ask for.

Three scopes: a fact of the case, of one process group of it, or of one channel in one process group (there it
excuses that channel only). Adding a fact is one entry in `FACTS`.

A channel's facts are taken over the training steps of the schedule: the smallest value counts, since the
discrepancies that ask for them are those of small variances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.values import tensors

Floats = NDArray[np.float64]
Group = tuple[int, ...]
Scope = Literal["case", "group", "channel"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: its scope, how it is read off a case (and group), and what it says."""

    scope: Scope
    read: Callable[[Case, Group], Any]
    text: str


@lru_cache(maxsize=64)
def _training_moments(case: Case, group: Group) -> tuple[tuple[Floats, Floats], ...]:
    """Return, for each training step, the smallest local and the global variance, each of shape (C,).

    A variance of equal values is exactly zero here, whatever the rounding of their mean.
    """
    moments = []
    for step, plan in enumerate(case.steps):
        if plan.mode != "train":
            continue
        parts = [
            np.moveaxis(tensors(case, rank, step=step)[0], 1, 0).reshape(case.channels, -1)
            for rank in group
            if case.count_of(rank)
        ]
        if parts:
            local = np.min([_variance(part) for part in parts], axis=0)
            moments.append((local, _variance(np.concatenate(parts, axis=1))))
    return tuple(moments)


def _variance(values: Floats) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        constant = values.max(axis=1) == values.min(axis=1)
        return np.where(constant, 0.0, values.var(axis=1))


def _smallest(case: Case, group: Group, which: int) -> Floats:
    found = [moments[which] for moments in _training_moments(case, group)]
    return np.min(found, axis=0) if found else np.full(case.channels, np.nan)


def _over_eps(values: Floats, case: Case) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return values / case.eps


def _stale_buffers(case: Case) -> bool:
    """Whether an evaluation step's backward is deferred past the forward of a training step."""
    return case.tracking and any(
        first.mode == "eval" and first.backward == "deferred" and then.mode == "train"
        for first, then in pairwise(case.steps)
    )


def _ambiguous_layout(case: Case, rank: int) -> bool:
    """Whether one of input and cotangent is permuted, the other contiguous, and the permuted one is a line.

    A single sample (1, C, 3, 1) with reversed strides (1, 1, C, 3 C) is contiguous in channels_last as well.
    """
    lines = sum(size > 1 for size in case.spatial_of(rank))
    return (
        {case.input_layout, case.cotangent_layout} == {"contiguous", "permuted"}
        and case.batches[rank] == 1
        and case.channels > 1
        and len(case.spatial_of(rank)) >= 2
        and lines == 1
    )


def _adds_one_by_one(case: Case, rank: int) -> bool:
    """Whether torch's native kernel adds this rank's values up one by one in float32.

    The channels-last kernel does, which also takes batches of one position, and so do all kernels of the half
    dtypes; the others add float32 up in float64. A permuted sample may be contiguous in channels_last.
    """
    if case.dtype != "float32":
        return case.dtype != "float64"
    lines = case.input_layout == "permuted" and case.batches[rank] == 1
    return case.input_layout == "channels_last" or math.prod(case.spatial_of(rank)) == 1 or lines


def _of_case(read: Callable[[Case], Any], text: str) -> Fact:
    return Fact("case", lambda case, group: read(case), text)


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
    "recompute": _of_case(lambda c: any(s.recompute for s in c.steps), "a step is recomputed"),
    "deferred": _of_case(lambda c: any(s.backward == "deferred" for s in c.steps), "a backward is deferred"),
    "accumulate": _of_case(lambda c: any(s.accumulate for s in c.steps), "parameter gradients accumulate"),
    "eval": _of_case(lambda c: any(s.mode == "eval" for s in c.steps), "a step is in evaluation mode"),
    "train": _of_case(lambda c: any(s.mode == "train" for s in c.steps), "a step is in training mode"),
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
        lambda c: c.input_layout in ("permuted", "sliced") or c.strided_buffers,
        "input or running buffers are strided, so that torch's native kernel indexes every element",
    ),
    "strided_buffers": _of_case(lambda c: c.strided_buffers, "running buffers are not contiguous"),
    "widest_dtype": _of_case(
        lambda c: c.param_dtype if c.has_weight or c.tracking else c.dtype,
        "widest dtype among input, parameters and buffers",
    ),
    "stale_buffers": _of_case(
        _stale_buffers,
        "the backward of an evaluation step with buffers runs after a later training step changed them",
    ),
    "probe": _of_case(lambda c: c.probe, "additional run of the case"),
    "group_size": Fact("group", lambda c, g: len(g), "ranks in the process group"),
    "unsynchronised": Fact(
        "group",
        lambda c, g: len(g) == 1 or any(s.mode == "eval" for s in c.steps),
        "a step needs no other rank: an evaluation step, or any in a group of one rank",
    ),
    "own_statistics": Fact(
        "group",
        lambda c, g: any(len(g) == 1 if s.mode == "train" else not c.tracking for s in c.steps),
        "a rank normalises by its own batch: training in a group of one rank, evaluation without buffers",
    ),
    "ambiguous_layout": Fact(
        "group",
        lambda c, g: any(_ambiguous_layout(c, r) for r in g),
        "input and cotangent are contiguous in different memory formats that one sample does not tell apart",
    ),
    "adds_one_by_one": Fact(
        "group",
        lambda c, g: any(_adds_one_by_one(c, r) for r in g),
        "torch's native kernel adds up one by one in float32: half dtypes, channels_last, a single position",
    ),
    "empty_ranks": Fact(
        "group", lambda c, g: sum(c.count_of(r) == 0 for r in g), "ranks of the process group without values"
    ),
    "total_count": Fact("group", lambda c, g: c.total_of(g), "values a channel in the process group"),
    "max_count": Fact(
        "group",
        lambda c, g: max(c.count_of(r) for r in g),
        "values a channel on the fullest rank of the group",
    ),
    "min_count": Fact(
        "group",
        lambda c, g: min((c.count_of(r) for r in g if c.count_of(r)), default=0),
        "values a channel on the emptiest rank of the group that has any",
    ),
    "channel_min_local_var": Fact(
        "channel", lambda c, g: _smallest(c, g, 0), "smallest variance of the channel on any rank"
    ),
    "channel_min_local_var_over_eps": Fact(
        "channel", lambda c, g: _over_eps(_smallest(c, g, 0), c), "the same divided by eps"
    ),
    "channel_global_var": Fact(
        "channel", lambda c, g: _smallest(c, g, 1), "variance of the channel over the group"
    ),
    "channel_global_var_over_eps": Fact(
        "channel", lambda c, g: _over_eps(_smallest(c, g, 1), c), "the same divided by eps"
    ),
}

"""The walk of one process group through a case's schedule: its state, and the expected tensors it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.domain import Contract, Grade
from properties.expectation.expected import Interval
from reference.padding import Layout
from reference.rounding import FACTS
from reference.signature import StepOutput

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Estimate(NamedTuple):
    """Value and bound of a tensor; NaN with bound 0 for a value that is expected to be non-finite."""

    value: Floats
    bound: Floats


def decided(value: Floats, bound: Floats, *, poisoned: Bools | None) -> Estimate:
    """Return value and bound as they may be judged.

    What overflowed in the reference itself is undecided, and what is poisoned is judged by its class alone.

    Args:
        value: Computed by the reference; not finite only where it overflowed.
        bound: Of the same shape.
        poisoned: Where a non-finite input must make the result non-finite; same shape, or None for nowhere.
    """
    lost = ~np.isfinite(value)
    if lost.any():
        value, bound = np.where(lost, 0.0, value), np.where(lost, np.inf, bound)
    if poisoned is not None and poisoned.any():
        value, bound = np.where(poisoned, np.nan, value), np.where(poisoned, 0.0, bound)
    return Estimate(value, bound)


@dataclass(slots=True)
class Buffers:
    """Expected running buffers and the exact count of tracked batches."""

    mean: Estimate
    var: Estimate
    tracked: int


@dataclass(slots=True)
class Walk:
    """The state of one process group on its way through the schedule.

    Attributes:
        inputs: Input and cotangent by (rank, step).
        buffers: As they stand.
        steps: Each rank's share of the steps that ran, by step and rank.
        sums: Accumulated parameter gradients by name and rank.
        tensors, tracked: As in `properties.expectation.expected.Expected`.
    """

    case: Case
    contract: Contract
    grade: Grade
    device: str
    group: tuple[int, ...]
    inputs: dict[tuple[int, int], tuple[Floats, Floats]]
    buffers: Buffers
    steps: dict[int, dict[int, RankStep]] = field(default_factory=dict)
    sums: dict[tuple[str, int], Estimate] = field(default_factory=dict)
    tensors: dict[str, dict[int, Interval]] = field(default_factory=dict)
    tracked: dict[str, dict[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class RankStep:
    """One rank's share of one step: the program's output and where the rank lies in it.

    Attributes:
        where: The layout of the program's input.
        slot: The rank's place in it.
        output: Values and bounds of all ranks.
        poisoned: Channels that a non-finite input, or buffer, makes non-finite.
        poisoned_elements: In an evaluation the elements, (shards, C).
        unsettled: Channels in which 1 / deviation, or the mean, may not be finite.
    """

    where: Layout
    slot: int
    output: StepOutput
    poisoned: Bools
    poisoned_elements: Bools | None
    unsettled: Bools

    @property
    def held(self) -> int:
        """How many of the rank's positions lie there: all, or one period of a block that repeats."""
        return self.where.counts[self.slot]


def accumulation_dtype(case: Case, contract: Contract) -> str:
    """Return the dtype that the subject accumulates in."""
    if contract.accumulate != "default":
        return contract.accumulate
    return "float32" if case.dtype in ("float16", "bfloat16") else case.dtype


def storing(stored: str, accumulated: str) -> tuple[float, float]:
    """Return the rounding of storing a result in a dtype: none in the dtype it was accumulated in."""
    if stored == accumulated or FACTS[stored].u < FACTS[accumulated].u:
        return 0.0, 0.0
    return FACTS[stored].u, FACTS[stored].underflow


def put(
    walk: Walk,
    name: str,
    rank: int,
    value: Floats,
    bound: Floats,
    *,
    dtype: str,
    optional: bool = False,
    whole: tuple[int, ...] = (),
) -> None:
    """Put the expected tensor `name` of `rank`, stored in `dtype`, among the walk's tensors.

    Of a tensor that repeats, of shape `whole`, value and bound are those of one period. What may be stored as
    an infinity of either sign may be any number between them, and is not decided.
    """
    facts = FACTS[dtype]
    with np.errstate(invalid="ignore"):
        overflows = np.abs(value) + bound >= facts.overflow
        bound = np.where(bound - np.abs(value) >= facts.overflow, np.inf, bound)
    interval = Interval(
        value=value,
        bound=bound,
        overflows=overflows,
        optional=optional,
        dtype=dtype,
        repeats=bool(whole),
        logical_shape=whole,
    )
    walk.tensors.setdefault(name, {})[rank] = interval

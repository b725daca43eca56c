"""Expectation: what the reference says of a case, tensor by tensor and rank by rank.

The schedule is walked as the ranks walk it; buffers carry (value, bound) from step to step and are never
re-anchored to observed ones. A channel with a non-finite input is poisoned: its tensors are expected to be
non-finite (NaN stands for any class), and the reference computes the others with the element set to zero.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from properties.case import Case, events
from properties.domain import Contract, Grade
from properties.expectation.expected import Expected, Interval
from properties.expectation.group_step import run_step
from properties.expectation.parameter_gradients import store_grad_parameter
from properties.expectation.running_buffers import update_buffers
from properties.expectation.schedule_state import Bools, Buffers, Estimate, RankStep, Walk, decided, put
from properties.values import elements
from reference.host import precise
from reference.padding import lines, unpack

Floats = NDArray[np.float64]


def refusals(case: Case) -> dict[int, str]:
    """Return the ranks that must refuse `case`, with the exception's type name; "" for any type.

    A wrong input is refused by every rank, a training batch of one value a channel by every rank of its
    group; in evaluation without buffers a rank normalises with its own batch and refuses a count of one.
    """
    if case.wrong:
        return dict.fromkeys(range(case.world_size), "")
    refusing = {}
    for group in case.process_groups:
        for step, sized in zip(case.steps, case.by_step, strict=True):
            if step.mode == "train" and sized.total_of(group) == 1:
                refusing.update(dict.fromkeys(group, "ValueError"))
            elif step.mode == "eval" and not case.tracking:
                refusing.update({rank: "ValueError" for rank in group if sized.count_of(rank) == 1})
    return refusing


def expect(case: Case, contract: Contract, grade: Grade, *, device: str = "cpu") -> Expected:
    """Return the expected tensors of `case` under `contract`, with bounds for `grade`.

    Args:
        case: The case.
        contract: Which convention is right.
        grade: The error model that the bounds are for.
        device: cpu or cuda; selects the table of operations' errors.
    """
    ranks = range(case.world_size)
    drawn = elements.drawn(case, ranks, channels_last=True)
    digests = {
        rank: elements.digest(*(array for k in range(len(case.steps)) for array in drawn[rank, k]))
        for rank in ranks
    }
    refusing = refusals(case)
    tensors: dict[str, dict[int, Interval]] = {}
    tracked: dict[str, dict[int, int]] = {}
    if not case.ragged_grad and not case.wrong:
        with precise():
            for group in case.process_groups:
                if not any(rank in refusing for rank in group):
                    walk = start(case, contract, grade, device=device, group=group, inputs=drawn)
                    Follower(walk).follow()
                    for name, by_rank in walk.tensors.items():
                        tensors.setdefault(name, {}).update(by_rank)
                    for name, counts in walk.tracked.items():
                        tracked.setdefault(name, {}).update(counts)
    return Expected(tensors=tensors, tracked=tracked, refusals=refusing, digests=digests, grade=grade)


def start(
    case: Case,
    contract: Contract,
    grade: Grade,
    *,
    device: str,
    group: tuple[int, ...],
    inputs: dict[tuple[int, int], tuple[Floats, Floats]],
) -> Walk:
    """Return the walk of `group` before its first step."""
    first, zero = elements.parameters(case), np.zeros(case.channels)
    buffers = Buffers(Estimate(first.running_mean, zero), Estimate(first.running_var, zero), 0)
    return Walk(case, contract, grade, device, group, inputs, buffers)


class Follower:
    """Follows the schedule of one process group as a right subject would; its stages can be replaced.

    Attributes:
        walk: The group's; its tensors are there once the schedule is followed.
    """

    def __init__(self, walk: Walk) -> None:
        self.walk = walk

    def follow(self) -> None:
        """Go through the schedule."""
        for what, k in events(self.walk.case):
            if what == "forward":
                self.forward(k)
            else:
                self.backward(k)
        if self.walk.case.tracking:
            self.snapshot("end")

    def step(self, k: int, members: tuple[int, ...], *, training: bool) -> dict[int, RankStep]:
        """Return each member's share of step k; `training` if it is normalised with the members' batch."""
        return run_step(self.walk, k, members, training=training)

    def update(self, k: int, *, again: bool = False) -> None:
        """Update the buffers in the forward of training step k, or `again` in its recomputation."""
        update_buffers(self.walk, k, again=again)

    def before_backward(self, k: int) -> None:
        """Change the shares of step k that its backward is read off, if it differs from the forward's."""

    def forward(self, k: int) -> None:
        """Do the forward of step k: its shares, outputs and updates."""
        walk, case = self.walk, self.walk.case
        training = case.steps[k].mode == "train"
        if training or case.tracking:
            walk.steps[k] = self.step(k, walk.group, training=training)
        else:
            walk.steps[k] = {}
            for rank in walk.group:
                walk.steps[k].update(self.step(k, (rank,), training=True))
        for rank in walk.group:
            store_output(walk, k, rank)
        if case.tracking:
            if training:
                self.update(k)
            self.snapshot(str(k))

    def snapshot(self, at: str) -> None:
        """Note what the buffers hold, `at` a step or the end."""
        walk = self.walk
        first = walk.group[0]
        for name, estimate in (("running_mean", walk.buffers.mean), ("running_var", walk.buffers.var)):
            put(walk, f"{name}.{at}", first, estimate.value, estimate.bound, dtype=walk.case.param_dtype)
            by_rank = walk.tensors[f"{name}.{at}"]
            by_rank.update(dict.fromkeys(walk.group, by_rank[first]))  # the same on every rank
        walk.tracked[f"num_batches_tracked.{at}"] = dict.fromkeys(walk.group, walk.buffers.tracked)

    def backward(self, k: int) -> None:
        """Do the backward of step k: its gradients, and the update that a recomputation makes."""
        walk, case, step = self.walk, self.walk.case, self.walk.case.steps[k]
        twice = walk.contract.recompute_updates == "twice"
        if twice and step.mode == "train" and case.tracking and case.recomputes(k, walk.group[0]):
            self.update(k, again=True)
        self.before_backward(k)
        if not step.accumulate:
            walk.sums.clear()
        for rank in walk.group:
            if case.input_requires_grad(rank):
                store_grad_input(walk, k, rank)
        names: tuple[Literal["weight", "bias"], ...] = ("weight", "bias")
        for name in names:
            if case.trains(name, k):
                store_grad_parameter(walk, k, name)


def store_output(walk: Walk, k: int, rank: int) -> None:
    """Put the output of step k on `rank` among the walk's tensors."""
    case, step = walk.case.at(k), walk.steps[k][rank]
    value, bound = (_placed(case, step, rank, packed) for packed in (step.output.y, step.output.y_bound))
    estimate = decided(value, bound, poisoned=_poisoned(case, rank, step, value))
    put(walk, f"output.{k}", rank, *estimate, dtype=case.dtype, whole=_whole(case, step, rank))


def _whole(case: Case, step: RankStep, rank: int) -> tuple[int, ...]:
    """Return the shape of the rank's output if what is expected of it is one period; else ()."""
    return case.shape_of(rank) if _repeats(case, step, rank) else ()


def _repeats(case: Case, step: RankStep, rank: int) -> bool:
    """Return whether what is expected of the rank's output is one period of it."""
    return step.held < case.count_of(rank)


def _placed(case: Case, step: RankStep, rank: int, packed: Floats) -> Floats:
    """Return the rank's elements in their logical shape; of one period (positions, C)."""
    if _repeats(case, step, rank):
        return lines(step.where, packed, step.slot, case.channels)
    return unpack(step.where, packed, step.slot, case.shape_of(rank))


def _poisoned(case: Case, rank: int, step: RankStep, like: Floats) -> Bools | None:
    """Return what a non-finite input poisons: in training the whole channel, in evaluation the element alone.

    A running buffer that is not finite poisons its channel in evaluation, too.
    """
    elements = step.poisoned_elements
    if not step.poisoned.any():
        return None
    if elements is None:
        return np.broadcast_to(step.poisoned.reshape(1, -1, *[1] * (like.ndim - 2)), like.shape)
    if _repeats(case, step, rank):
        once: Bools = elements[0].T
        return once
    return elements.reshape(case.shape_of(rank))


def store_grad_input(walk: Walk, k: int, rank: int) -> None:
    """Put the input's gradient of step k on `rank` among the walk's tensors."""
    case, step = walk.case.at(k), walk.steps[k][rank]
    packed = (step.output.grad_input, step.output.grad_input_bound)
    value, bound = (_placed(case, step, rank, array) for array in packed)
    evaluated = step.poisoned_elements is not None  # its gradient does not depend on the input
    poisoned = None if evaluated else _poisoned(case, rank, step, value)
    put(
        walk,
        f"grad_input.{k}",
        rank,
        *decided(value, bound, poisoned=poisoned),
        dtype=case.dtype,
        optional=case.count_of(rank) == 0,
        whole=_whole(case, step, rank),
    )

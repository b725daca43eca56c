"""A plain batch norm's way through the schedule of a case: the tensors that its lines give, rank by rank.

It has no bounds of its own: what it gives is compared within those of a right subject. Not for cases with
wrong inputs, or gradients on some ranks only. Of one with non-finite inputs it says what becomes non-finite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from properties.case import Case, events
from properties.diagnosis.plain_batchnorm import Backward, Buffers, Lines, Modes, Moments, Step
from properties.domain import Contract
from properties.values import elements

Floats = NDArray[np.float64]
Inputs = dict[tuple[int, int], tuple[Floats, Floats]]
"""Input and cotangent, (N, C, positions), by rank and step."""
Tensors = dict[tuple[str, int], Floats]
"""By name (`output.0`, see `properties.observation`) and rank, in the tensor's logical shape."""


def expressible(case: Case) -> bool:
    """Whether `follow` can say what a subject gives for the case."""
    return not (case.wrong or case.ragged_grad or case.specials)


def inputs_of(case: Case) -> Inputs:
    """Return input and cotangent of each rank and step."""
    return elements.complete(case, range(case.world_size))


def follow(case: Case, contract: Contract, modes: Modes, inputs: Inputs | None = None) -> Tensors:
    """Return the tensors that a subject with these lines gives for the case.

    `inputs` are those of `inputs_of`, where they are known.
    """
    inputs = inputs_of(case) if inputs is None else inputs
    tensors: Tensors = {}
    with np.errstate(all="ignore"):
        for group in case.process_groups:
            _Walk(case, contract, modes, group, inputs, tensors).follow()
    return tensors


@dataclass(frozen=True, slots=True)
class _Forward:
    """What one member's backward needs of the forward."""

    step: Step
    slot: int
    moments: Moments
    scale: Floats
    xhat: Floats


@dataclass(slots=True)
class _Walk:
    """One process group's way through the schedule."""

    case: Case
    contract: Contract
    modes: Modes
    group: tuple[int, ...]
    inputs: Inputs
    tensors: Tensors
    buffers: dict[int, Buffers] = field(default_factory=dict)
    steps: dict[int, dict[int, _Forward]] = field(default_factory=dict)
    gradients: dict[tuple[str, int], Floats] = field(default_factory=dict)
    tracked: int = 0

    def follow(self) -> None:
        start = elements.parameters(self.case)
        self.buffers = dict.fromkeys(self.group, Buffers(start.running_mean, start.running_var))
        for what, k in events(self.case):
            if what == "forward":
                self.forward(k)
            else:
                self.backward(k)
        self.snapshot("end")

    def step(self, k: int, members: tuple[int, ...], *, batch: bool) -> Step:
        case = self.case.at(k)
        weight, bias = elements.affine(case, k)
        pairs = [self.inputs[rank, k] for rank in members]
        return Step(
            case=case,
            number=k,
            members=members,
            x=tuple(x for x, _ in pairs),
            g=tuple(np.broadcast_to(g, x.shape) for x, g in pairs),
            weight=weight if case.has_weight else np.ones(case.channels),
            bias=bias if case.has_bias else np.zeros(case.channels),
            training=case.steps[k].mode == "train",
            batch=batch,
            contract=self.contract,
        )

    def lines(self, k: int) -> Lines:
        if self.case.steps[k].mode == "train":
            return self.modes.train
        return self.modes.running if self.case.tracking else self.modes.own

    def forward(self, k: int) -> None:
        lines, training = self.lines(k), self.case.steps[k].mode == "train"
        self.steps[k] = {}
        for members in [self.group] if training else [(rank,) for rank in self.group]:
            step = self.step(k, members, batch=training or not self.case.tracking)
            local = [lines.moments(step, slot) for slot in range(len(members))] if step.batch else []
            for slot, rank in enumerate(members):
                moments = Moments(1.0, *self.buffers[rank])
                if step.batch:
                    moments = lines.merged(step, slot, local)
                scale = lines.scale(step, slot, moments)
                xhat = lines.normalised(step, slot, moments, scale)
                self.steps[k][rank] = _Forward(step, slot, moments, scale, xhat)
                output = lines.stored(step, lines.output(step, slot, xhat))
                self.tensors[f"output.{k}", rank] = output.reshape(step.case.shape_of(rank))
        if training and self.case.tracking:
            self.update(k)
        self.snapshot(str(k))

    def update(self, k: int) -> None:
        self.tracked += 1
        if not self.case.at(k).total_of(self.group):
            return
        share = self.case.momentum
        if share is None:
            share = 1.0 / self.tracked
        elif self.contract.momentum == "decay":
            share = 1.0 - share
        for rank, of in self.steps[k].items():
            before = self.buffers[rank]
            after = self.lines(k).tracked(of.step, of.slot, before, of.moments, share)
            dtype = self.case.param_dtype  # what is stored is read again
            self.buffers[rank] = Buffers(*(elements.round_to(each, dtype) for each in after))

    def snapshot(self, at: str) -> None:
        if self.case.tracking:
            for rank, buffers in self.buffers.items():
                self.tensors[f"running_mean.{at}", rank] = buffers.mean
                self.tensors[f"running_var.{at}", rank] = buffers.var

    def backward(self, k: int) -> None:
        case, lines, step = self.case, self.lines(k), self.case.steps[k]
        twice = self.contract.recompute_updates == "twice"
        if twice and step.mode == "train" and case.tracking and case.recomputes(k, self.group[0]):
            self.update(k)
        if not step.accumulate:
            self.gradients.clear()
        own = {rank: lines.sums(of.step, of.slot, of.xhat, of.scale) for rank, of in self.steps[k].items()}
        for rank, of in self.steps[k].items():
            parts = [own[member] for member in of.step.members]
            sums = lines.reduced(of.step, of.slot, parts)
            known = Backward(of.xhat, of.moments, of.scale, sums, own[rank])
            if case.input_requires_grad(rank):
                gradient = lines.stored_gradient(of.step, lines.gradient(of.step, of.slot, known))
                self.tensors[f"grad_input.{k}", rank] = gradient.reshape(of.step.case.shape_of(rank))
            weight, bias = lines.parameters(of.step, of.slot, known, parts)
            pairs: tuple[tuple[Literal["weight", "bias"], Floats], ...]
            pairs = ("weight", weight), ("bias", bias)
            for name, value in pairs:
                if case.trains(name, k):
                    total = value + self.gradients.get((name, rank), 0.0)
                    self.gradients[name, rank] = total
                    self.tensors[f"grad_{name}.{k}", rank] = total

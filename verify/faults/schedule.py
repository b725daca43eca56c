"""Faults of the schedule: gradients disabled, parameters written or frozen between steps, other sizes.

`Ungraded` is `Aggregated` that knows whether gradients are enabled, and `Seeing` one with a method that says
what stands for weight and bias; a fault replaces a method and leaves the rest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from verify.faults.groups import _of
from verify.subjects.aggregated import (
    Aggregated,
    Moments,
    Statistics,
    gather_moments,
    local_moments,
)
from verify.subjects.aggregated import merge as right_merge
from verify.subjects.channels import accumulation_dtype

# Gradients disabled


class Ungraded(Aggregated):
    """A right subject that knows whether its forward was called without gradients."""

    disabled = False

    def forward(self, input: Tensor) -> Tensor:
        self.disabled = not torch.is_grad_enabled()
        return super().forward(input)


class NoGradNotSynchronized(Ungraded):
    """Takes this rank's statistics in a training step without gradients."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        return _of([local_moments(x)], right) if self.disabled else right


class NoGradNotTracked(Ungraded):
    """Leaves the buffers alone in a training step without gradients."""

    def track(self, statistics: Statistics) -> None:
        if not self.disabled:
            super().track(statistics)


class NoGradNotCounted(Ungraded):
    """Does not count a training step without gradients."""

    def track(self, statistics: Statistics) -> None:
        super().track(statistics)
        if self.disabled:
            self.num_batches_tracked.sub_(1)


class NoGradRounded(Ungraded):
    """Normalises with statistics in the input's dtype in a training step without gradients."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if self.disabled:
            mean, var = (one.to(x.dtype).to(one.dtype) for one in (statistics.mean, statistics.var))
            statistics = replace(statistics, mean=mean, var=var)
        return super().normalise(x, statistics, group)


class NoGradWorkspace(Ungraded):
    """Returns outputs of one shape in the same memory where gradients are disabled."""

    memory: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        if not self.disabled:
            return y
        if self.memory is None or self.memory.shape != y.shape:
            with torch.inference_mode(mode=False):
                self.memory = torch.empty_like(y)
        return self.memory.copy_(y)


def _evaluated(subject: Aggregated, x: Tensor) -> Tensor:
    """Return what a subject that trains would give for `x` if it evaluated."""
    subject.training = False
    try:
        y: Tensor = Aggregated.forward(subject, x)
    finally:
        subject.training = True
    return y


class NoGradEvaluates(Aggregated):
    """Takes a training step without gradients for an evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self.training or self.running_mean is None:
            return super().forward(input)
        return _evaluated(self, input)


class InferenceNotTracked(Aggregated):
    """Leaves the buffers alone in inference mode."""

    def track(self, statistics: Statistics) -> None:
        if not torch.is_inference_mode_enabled():
            super().track(statistics)


class InferenceReplacesBuffers(Aggregated):
    """Binds the buffers to new tensors in inference mode, which no later training step can write to."""

    def track(self, statistics: Statistics) -> None:
        if torch.is_inference_mode_enabled():
            for name in ("running_mean", "running_var"):
                setattr(self, name, getattr(self, name).clone())
        super().track(statistics)


# Weight and bias that are written between steps, or frozen in one


class Seeing(Aggregated):
    """A right subject that works with what `seen` returns for weight and bias."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.kept: dict[Any, Any] = {}

    def seen(self, name: str, parameter: Tensor) -> Tensor:
        """Return what stands for a parameter."""
        del name
        return parameter

    def forward(self, input: Tensor) -> Tensor:
        own = {name: one for name, one in self._parameters.items() if one is not None}
        try:
            self._parameters.update({name: self.seen(name, one) for name, one in own.items()})
            return super().forward(input)
        finally:
            self._parameters.update(own)


class _Standing(torch.autograd.Function):
    """A value that stands for a parameter, whose gradient is the parameter's."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class WeightCached(Seeing):
    """Keeps weight and bias as they are in its first forward."""

    def seen(self, name: str, parameter: Tensor) -> Tensor:
        value = self.kept.setdefault(name, parameter.detach().clone())
        return _Standing.apply(parameter, value)


class WideWeightCached(Seeing):
    """Keeps the float32 copy of a half weight and bias that it makes in its first forward."""

    def seen(self, name: str, parameter: Tensor) -> Tensor:
        value = parameter.detach().to(accumulation_dtype(parameter.dtype))
        return _Standing.apply(parameter, self.kept.setdefault(name, value))


class EvaluationWeightCached(WeightCached):
    """Keeps weight and bias as they are in its first evaluation, for later ones."""

    def seen(self, name: str, parameter: Tensor) -> Tensor:
        return parameter if self.training else super().seen(name, parameter)


class WeightByAddress(Seeing):
    """Looks up weight and bias by where they lie in memory; only in training."""

    def seen(self, name: str, parameter: Tensor) -> Tensor:
        value = self.kept.setdefault(parameter.data_ptr(), parameter.detach().clone())
        return _Standing.apply(parameter, value) if self.training else parameter


class _Refreshing(torch.autograd.Function):
    """`_Standing`, whose backward throws the value away."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, value: Tensor, kept: dict[Any, Any]) -> Tensor:
        ctx.kept = kept
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.kept.clear()
        return gradient, None, None


class RefreshedAfterBackward(Seeing):
    """Copies weight and bias anew after a backward only, since only then an optimizer steps."""

    def seen(self, name: str, parameter: Tensor) -> Tensor:
        value = self.kept.setdefault(name, parameter.detach().clone())
        return _Refreshing.apply(parameter, value, self.kept)


class IdentityAtFirst(Seeing):
    """Leaves a weight of ones and a bias of zeros out, for good, if they are so in its first forward."""

    def seen(self, name: str, parameter: Tensor) -> Tensor:
        plain = torch.full_like(parameter, float(name == "weight"))
        if self.kept.setdefault(name, torch.equal(parameter, plain)):
            return _Standing.apply(parameter, plain)
        return parameter


class TrainedAtFirst(Seeing):
    """Has no gradient of a parameter that is frozen in its first forward, later neither."""

    def seen(self, name: str, parameter: Tensor) -> Tensor:
        trained = self.kept.setdefault(name, parameter.requires_grad)
        return parameter if trained else parameter.detach()


class GradientHandedOn(Seeing):
    """Works with an alias that requires a gradient if the parameter did at first, and hands that on to it."""

    def seen(self, name: str, parameter: Tensor) -> Tensor:
        trained = self.kept.setdefault(name, parameter.requires_grad)
        if parameter.requires_grad or not trained:
            return parameter
        alias = parameter.detach().requires_grad_()
        alias.register_hook(lambda gradient: setattr(parameter, "grad", gradient))
        return alias


class _Freezing(Aggregated):
    """A subject that knows whether its parameters were frozen after it had trained them."""

    trained = False

    def frozen_later(self) -> bool:
        """Return whether no parameter is trained now, though some were in an earlier step."""
        trains = any(one.requires_grad for one in self.parameters())
        self.trained = self.trained or trains
        return self.trained and not trains


class FrozenLaterEvaluates(_Freezing):
    """Takes a step whose parameters are frozen, after they were trained, for an evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        if self.frozen_later() and self.training and self.running_mean is not None:
            return _evaluated(self, input)
        return super().forward(input)


class FrozenLaterNotSynchronized(_Freezing):
    """Takes this rank's statistics in a step whose parameters are frozen, after they were trained."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        return _of([local_moments(x)], right) if self.frozen_later() else right


class FrozenNotSynchronized(Aggregated):
    """Takes this rank's statistics where it has parameters and all of them are frozen."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        frozen = self.weight is not None and not any(one.requires_grad for one in self.parameters())
        return _of([local_moments(x)], right) if frozen else right


# Sizes that are others in later steps


class CountOfFirst(Aggregated):
    """Divides the sums of its backward by the count of its first batch."""

    first = 0

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if self.training:
            self.first = self.first or statistics.count
            statistics = replace(statistics, count=self.first)
        return super().normalise(x, statistics, group)


class BesselOfFirst(Aggregated):
    """Corrects the variance by the n / (n - 1) of its first batch."""

    first = 0

    def track(self, statistics: Statistics) -> None:
        self.first = self.first or statistics.count
        super().track(replace(statistics, count=self.first) if statistics.count else statistics)


class CountsGatheredOnce(Aggregated):
    """Weighs the ranks by their counts in its first batch."""

    counts: tuple[int, ...] = ()

    def merge(self, parts: list[Moments]) -> Statistics:
        if not self.training:
            return right_merge(parts)
        self.counts = self.counts or tuple(part.count for part in parts)
        old = [replace(part, count=count) for part, count in zip(parts, self.counts, strict=True)]
        return _of(old, right_merge(parts))


class EmptyOfFirst(Aggregated):
    """Leaves the ranks out that were empty in its first batch."""

    filled: tuple[bool, ...] = ()

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        if not self.training or not right.count:
            return right
        self.filled = self.filled or tuple(part.count > 0 for part in parts)
        kept = [part for part, filled in zip(parts, self.filled, strict=True) if filled]
        return _of(kept or parts, right)


class ReciprocalOfFirst(Aggregated):
    """Multiplies this rank's sum by one over the count of its first batch."""

    first = 0

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        own = replace(local_moments(x), wants_gradient=wants_gradient)
        self.first = self.first or own.count
        if own.count != self.first:
            mean = own.mean * (own.count / self.first)
            own = replace(own, mean=mean, m2=own.m2 + own.count * (own.mean - mean).square())
        return self.merge([own] if group is None else gather_moments(own, group))


class SamplesOfFirst(Aggregated):
    """Writes no more samples of its output than its first batch had; the others are zero."""

    first = 0

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        self.first = self.first or y.shape[0]
        y.detach()[self.first :] = 0
        return y


class PositionsOfFirst(Aggregated):
    """Takes the spatial size of its first batch for that of each: it counts samples times that."""

    first = 0

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        self.first = self.first or int(x[0, 0].numel() if len(x) else 0)
        own = replace(local_moments(x), count=len(x) * self.first)
        return _of([own] if group is None else gather_moments(own, group), right)

"""Faults of the backward: the normaliser, the local terms, gradients scaled by the number of ranks.

`Stepwise` is `Aggregated` with the steps of the backward as methods of the subject, so that a fault replaces
one and leaves the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from verify.subjects.aggregated import Aggregated, Normalise, Statistics, inverse_deviation
from verify.subjects.channels import columns, native_layout, uncolumns

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Saved:
    """What the forward left: x and weight as given, mean and invstd (C,), values a channel, group."""

    x: Tensor
    weight: Tensor | None
    mean: Tensor
    invstd: Tensor
    count: int
    group: Any

    @property
    def world(self) -> int:
        """Ranks in the group."""
        return 1 if self.group is None else int(dist.get_world_size(self.group))

    @property
    def own_count(self) -> int:
        """Values a channel on this rank, at least 1."""
        return max(int(self.x.numel()) // max(int(self.x.shape[1]), 1), 1)


class _Function(torch.autograd.Function):
    """`Normalise`, whose backward asks the subject, the last argument, for each step."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.subject = arguments[-1]
        return Normalise.forward(ctx, *arguments[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        subject, needs = ctx.subject, ctx.needs_input_grad
        x, weight, mean, invstd = ctx.saved_tensors
        saved = subject.saved(Saved(x, weight, mean, invstd, max(ctx.count, 1), ctx.group))
        g = subject.cotangent(dy)
        xhat = (columns(saved.x) - saved.mean[:, None]) * saved.invstd[:, None]
        sums = (g.sum(1), (g * xhat).sum(1))
        grad_weight, grad_bias = subject.parameter_gradients(sums, g, saved)
        if saved.group is not None:
            sums = subject.reduced(sums, saved)
        grad_input = None
        if needs[0]:
            data = subject.input_gradient(g, xhat, sums, saved) * subject.scale(saved)[:, None]
            grad_input = native_layout(uncolumns(data, saved.x), saved.x)
        grad_weight = grad_weight.to(saved.weight.dtype) if needs[1] and saved.weight is not None else None
        grad_bias = grad_bias.to(ctx.bias_dtype) if needs[2] else None
        return grad_input, grad_weight, grad_bias, *(None,) * 6


class Stepwise(Aggregated):
    """A right subject with a method for each step of its backward in training."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        invstd = inverse_deviation(statistics.var, self.eps)
        anchor = None
        if group is not None and torch.is_grad_enabled() and not x.requires_grad:
            anchor = torch.zeros((), device=x.device, requires_grad=True)
        count = statistics.count
        return _Function.apply(x, self.weight, self.bias, statistics.mean, invstd, count, group, anchor, self)

    def saved(self, saved: Saved) -> Saved:
        """Return what the backward works with."""
        return saved

    def cotangent(self, dy: Tensor) -> Tensor:
        """Return the cotangent (N, C, ...) as (C, n)."""
        return columns(dy)

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        """Return grad_weight and grad_bias from this rank's sums of g xhat and g."""
        del g, saved
        return sums[1], sums[0]

    def reduced(self, sums: Pair, saved: Saved) -> Pair:
        """Return the sums of g and g xhat over the group."""
        return all_reduced(sums, saved.group)

    def input_gradient(self, g: Tensor, xhat: Tensor, sums: Pair, saved: Saved) -> Tensor:
        """Return grad_input (C, n) before it is scaled by invstd and weight."""
        mean, projection = sums[0] / saved.count, sums[1] / saved.count
        return g - mean[:, None] - xhat * projection[:, None]

    def scale(self, saved: Saved) -> Tensor:
        """Return what grad_input is scaled by."""
        return saved.invstd if saved.weight is None else saved.invstd * saved.weight.to(saved.mean.dtype)


def all_reduced(sums: Pair, group: Any) -> Pair:
    """Return a pair of (C,) tensors summed over `group`, by one all-reduce."""
    total = torch.cat(sums)
    dist.all_reduce(total, group=group)
    first, second = total.chunk(2)
    return first, second


# Class 2: the normaliser


class WorldTimesLocalCount(Stepwise):
    """Divides the sums by the number of ranks times this rank's count."""

    def saved(self, saved: Saved) -> Saved:
        return replace(saved, count=saved.world * saved.own_count)


class LocalCount(Stepwise):
    """Divides the sums over all ranks by this rank's count."""

    def saved(self, saved: Saved) -> Saved:
        return replace(saved, count=saved.own_count)


class WorldOnly(Stepwise):
    """Divides the sums by the number of ranks only."""

    def saved(self, saved: Saved) -> Saved:
        return replace(saved, count=saved.world)


class NotDivided(Stepwise):
    """Subtracts the sums as if they were means."""

    def saved(self, saved: Saved) -> Saved:
        return replace(saved, count=1)


class MeanOfMeans(Stepwise):
    """Averages the ranks' means of g and g xhat equally, whatever their counts."""

    def reduced(self, sums: Pair, saved: Saved) -> Pair:
        share = saved.count / (saved.own_count * saved.world)
        return all_reduced((sums[0] * share, sums[1] * share), saved.group)


# Class 5: local or missing terms


class LocalSums(Stepwise):
    """Subtracts this rank's sums, divided by the count of all ranks."""

    def reduced(self, sums: Pair, saved: Saved) -> Pair:
        del saved
        return sums


class LocalMeans(LocalSums):
    """Differentiates as if this rank's batch were the whole: own sums, own count."""

    def saved(self, saved: Saved) -> Saved:
        return replace(saved, count=saved.own_count)


class LocalProjection(Stepwise):
    """All-reduces the sum of g, and projects by this rank's sum of g xhat."""

    def reduced(self, sums: Pair, saved: Saved) -> Pair:
        return all_reduced(sums, saved.group)[0], sums[1]


class LocalMean(Stepwise):
    """All-reduces the sum of g xhat, and centres by this rank's sum of g."""

    def reduced(self, sums: Pair, saved: Saved) -> Pair:
        return sums[0], all_reduced(sums, saved.group)[1]


class NoMeanTerm(Stepwise):
    """Treats the mean as a constant."""

    def input_gradient(self, g: Tensor, xhat: Tensor, sums: Pair, saved: Saved) -> Tensor:
        return super().input_gradient(g, xhat, (torch.zeros_like(sums[0]), sums[1]), saved)


class NoProjectionTerm(Stepwise):
    """Treats the variance as a constant."""

    def input_gradient(self, g: Tensor, xhat: Tensor, sums: Pair, saved: Saved) -> Tensor:
        return super().input_gradient(g, xhat, (sums[0], torch.zeros_like(sums[1])), saved)


class MeanTermAdded(Stepwise):
    """Adds the mean of g where it must be subtracted."""

    def input_gradient(self, g: Tensor, xhat: Tensor, sums: Pair, saved: Saved) -> Tensor:
        return super().input_gradient(g, xhat, (-sums[0], sums[1]), saved)


class ProjectionAdded(Stepwise):
    """Adds the projection on xhat where it must be subtracted."""

    def input_gradient(self, g: Tensor, xhat: Tensor, sums: Pair, saved: Saved) -> Tensor:
        return super().input_gradient(g, xhat, (sums[0], -sums[1]), saved)


class FirstRanksSums(Stepwise):
    """Every rank uses the sums of the group's first rank."""

    def reduced(self, sums: Pair, saved: Saved) -> Pair:
        if dist.get_rank(saved.group) > 0:
            sums = (torch.zeros_like(sums[0]), torch.zeros_like(sums[1]))
        return all_reduced(sums, saved.group)


class TwoRanksSums(Stepwise):
    """From three ranks on, the sums of the third and all later ranks are lost."""

    def reduced(self, sums: Pair, saved: Saved) -> Pair:
        if dist.get_rank(saved.group) > 1:
            sums = (torch.zeros_like(sums[0]), torch.zeros_like(sums[1]))
        return all_reduced(sums, saved.group)


class GlobalRankSlots(Stepwise):
    """Writes its sums at its rank in the world: where the group does not start at rank 0, some are lost."""

    def reduced(self, sums: Pair, saved: Saved) -> Pair:
        slots = torch.zeros(saved.world, 2 * sums[0].numel(), dtype=sums[0].dtype, device=sums[0].device)
        if dist.get_rank() < saved.world:
            slots[dist.get_rank()] = torch.cat(sums)
        dist.all_reduce(slots, group=saved.group)
        first, second = slots.sum(0).chunk(2)
        return first, second


# Class 6: gradients scaled by the number of ranks


class InputTimesWorld(Stepwise):
    """Multiplies grad_input by the number of ranks, as the transpose of a psum that is a psum does."""

    def scale(self, saved: Saved) -> Tensor:
        return super().scale(saved) * saved.world


class InputOverWorld(Stepwise):
    """Divides grad_input by the number of ranks."""

    def scale(self, saved: Saved) -> Tensor:
        return super().scale(saved) / saved.world


class AffineSummed(Stepwise):
    """All-reduces the gradients of weight and bias, which a reducer of gradients does again."""

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        del g
        if saved.group is None:
            return sums[1], sums[0]
        return all_reduced((sums[1], sums[0]), saved.group)


class AffineAveraged(AffineSummed):
    """Averages the gradients of weight and bias over the ranks."""

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        weight, bias = super().parameter_gradients(sums, g, saved)
        return weight / saved.world, bias / saved.world


class WeightAveraged(AffineAveraged):
    """Averages the gradient of the weight over the ranks, and not that of the bias."""

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        return super().parameter_gradients(sums, g, saved)[0], sums[0]


class AffineOnFirstRank(AffineSummed):
    """Sums the gradients of weight and bias on the group's first rank; the others have zeros."""

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        weight, bias = super().parameter_gradients(sums, g, saved)
        first = saved.group is None or dist.get_rank(saved.group) == 0
        return (weight, bias) if first else (torch.zeros_like(weight), torch.zeros_like(bias))


# Formulas and layouts


class WeightNotCentred(Stepwise):
    """Takes the weight's gradient as sum g x invstd, without subtracting the mean."""

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        return (g * columns(saved.x)).sum(1) * saved.invstd, sums[0]


class WeightWithoutInvstd(Stepwise):
    """Takes the weight's gradient as sum g (x - mean), without invstd."""

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        return (g * (columns(saved.x) - saved.mean[:, None])).sum(1), sums[0]


class InputIgnoresWeight(Stepwise):
    """Leaves the weight out of grad_input."""

    def scale(self, saved: Saved) -> Tensor:
        return saved.invstd


class InputIgnoresFrozenWeight(Stepwise):
    """Leaves the weight out of grad_input where the weight is frozen."""

    def scale(self, saved: Saved) -> Tensor:
        frozen = saved.weight is not None and not saved.weight.requires_grad
        return saved.invstd if frozen else super().scale(saved)


class RunningStatistics(Stepwise):
    """Scales grad_input by the deviation of the running variance instead of the batch's."""

    def saved(self, saved: Saved) -> Saved:
        if self.running_var is None:
            return saved
        return replace(saved, invstd=inverse_deviation(self.running_var.to(saved.mean.dtype), self.eps))


class ExpandedCountedOnce(Stepwise):
    """Reads an expanded cotangent as its stored elements, and takes the others for zero."""

    def cotangent(self, dy: Tensor) -> Tensor:
        if 0 not in dy.stride() or not dy.numel():
            return columns(dy)
        once = torch.zeros_like(dy, memory_format=torch.contiguous_format)
        stored = tuple(slice(1) if step == 0 else slice(None) for step in dy.stride())
        once[stored] = dy[stored]
        return columns(once)


class PermutedReadInMemoryOrder(Stepwise):
    """Reads a dense cotangent in the order of its memory, whatever its strides."""

    def cotangent(self, dy: Tensor) -> Tensor:
        dense = dy.numel() == 1 + sum((n - 1) * step for n, step in zip(dy.shape, dy.stride(), strict=True))
        if dy.is_contiguous() or 0 in dy.stride() or not dense:
            return columns(dy)
        return columns(dy.as_strided(dy.shape, torch.empty(dy.shape).stride()))


class EvaluationAsTraining(Aggregated):
    """Differentiates an evaluation as if mean and variance came from the batch."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            return super().forward(input)
        self._check_input(input)
        dtype = columns(input).dtype
        mean, invstd = self.running_mean.to(dtype), inverse_deviation(self.running_var.to(dtype), self.eps)
        count = input.numel() // self.num_features
        return Normalise.apply(input, self.weight, self.bias, mean, invstd, count, None, None)

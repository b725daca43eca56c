"""Faults of options: buffers that are None, evaluation, weight and bias that are None, negative or frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from verify.faults.backward import Pair, Saved, Stepwise
from verify.subjects.aggregated import (
    Aggregated,
    Normalise,
    Statistics,
    gather_moments,
    inverse_deviation,
    local_moments,
)
from verify.subjects.channels import accumulation_dtype

# Buffers and evaluation


class FlagIgnored(Aggregated):
    """Keeps running statistics although it must not, and evaluates with them."""

    kept: Pair | None = None

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if self.running_mean is None and statistics.count:
            mean, var = self.kept or (torch.zeros_like(statistics.mean), torch.ones_like(statistics.var))
            if self.training:
                new = (0.9 * mean + 0.1 * statistics.mean, 0.9 * var + 0.1 * statistics.var)
                self.kept = new
            else:
                invstd = inverse_deviation(var, self.eps)
                return Normalise.apply(x, self.weight, self.bias, mean, invstd, None, None, None)
        return super().normalise(x, statistics, group)


class BuffersKept(Aggregated):
    """Has buffers, and updates them, although track_running_stats is False; nothing uses them."""

    def _train(self, x: Tensor) -> Tensor:
        if not self.track_running_stats and self.running_mean is None:
            self.running_mean: Any = torch.zeros(self.num_features, device=x.device)
            self.running_var: Any = torch.ones(self.num_features, device=x.device)
        return super()._train(x)

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if self.training and not self.track_running_stats and statistics.count:
            self.running_mean += 0.1 * (statistics.mean - self.running_mean)
            self.running_var += 0.1 * (statistics.var - self.running_var)
        return super().normalise(x, statistics, group)

    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.track_running_stats:
            return super().forward(input)
        self._check_input(input)
        return self.normalise(input, self._own_statistics(input), None)


class EvaluationCommunicates(Aggregated):
    """Without buffers, gathers the statistics of all ranks in evaluation, too."""

    def _own_statistics(self, x: Tensor) -> Statistics:
        group = self._group()
        if group is None:
            return super()._own_statistics(x)
        with torch.no_grad():
            statistics = self.merge(gather_moments(local_moments(x), group))
        self._check_count(statistics.count)
        return statistics


class TrainingNeedsBuffers(Aggregated):
    """Takes the dtype of the statistics from the running mean, which may be None, in training."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        dtype = torch.promote_types(self.running_mean.dtype, right.mean.dtype)
        return Statistics(right.count, right.mean.to(dtype), right.var.to(dtype), right.wants_gradient)


class EvaluationNeedsBuffers(Aggregated):
    """Evaluates with the buffers, which may be None."""

    def _own_statistics(self, x: Tensor) -> Statistics:
        return Statistics(0, self.running_mean.to(x.dtype), self.running_var.to(x.dtype))


class EvaluationByBatch(Aggregated):
    """Evaluates with the rank's own batch although there are buffers."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training or input.numel() <= self.num_features:
            return super().forward(input)
        self._check_input(input)
        return self.normalise(input, self._own_statistics(input), None)


class AlwaysTrains(Aggregated):
    """Ignores `eval()`: evaluation is a training step."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        return self._train(input)


# Weight and bias


class NeedsAffine(Aggregated):
    """Reads the dtype of the weight, which may be None."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        torch.promote_types(self.weight.dtype, x.dtype)
        return super().normalise(x, statistics, group)


class NeedsBias(Aggregated):
    """Reads the dtype of the bias where there is a weight, although the bias may be None."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if self.weight is not None:
            torch.promote_types(self.bias.dtype, x.dtype)
        return super().normalise(x, statistics, group)


class _Reweighted(Aggregated):
    """A subject that trains with another weight than its own."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        own = self._parameters["weight"]
        if own is None:
            return super().normalise(x, statistics, group)
        try:
            self._parameters["weight"] = self.reweighted(own)
            return super().normalise(x, statistics, group)
        finally:
            self._parameters["weight"] = own

    def reweighted(self, weight: Tensor) -> Tensor | None:
        """Return the weight to train with."""
        raise NotImplementedError


class AbsoluteWeight(_Reweighted):
    """Scales by the weight's magnitude."""

    def reweighted(self, weight: Tensor) -> Tensor:
        return weight.abs()


class ClampedWeight(_Reweighted):
    """Scales by zero where the weight is negative."""

    def reweighted(self, weight: Tensor) -> Tensor:
        return weight.clamp(min=0)


class ZeroWeightAsOne(_Reweighted):
    """Takes a weight of zero for one that is not set."""

    def reweighted(self, weight: Tensor) -> Tensor:
        return torch.where(weight == 0, torch.ones_like(weight), weight)


class WeightNeedsBias(_Reweighted):
    """Applies the weight only where there is a bias, too."""

    def reweighted(self, weight: Tensor) -> Tensor | None:
        return None if self.bias is None else weight


class BiasNeedsTrainedWeight(Stepwise):
    """Has no gradient of the bias where the weight is frozen."""

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        weight, bias = super().parameter_gradients(sums, g, saved)
        frozen = saved.weight is not None and not saved.weight.requires_grad
        return weight, torch.zeros_like(bias) if frozen else bias


class _Accumulating(torch.autograd.Function):
    """Identity whose backward adds to the gradient of a weight, whether or not it is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        if not ctx.weight.requires_grad:
            ctx.weight.grad = torch.ones_like(ctx.weight)
        return dy, None


class FrozenWeightTrained(Aggregated):
    """Gives a frozen weight a gradient."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        return y if self.weight is None else _Accumulating.apply(y, self.weight)


class _Asserting(torch.autograd.Function):
    """`Normalise`, whose backward asks that the gradients which `needed` names are needed."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.needed = arguments[-1]
        ctx.given = tuple(argument is not None for argument in arguments[:3])
        return Normalise.forward(ctx, *arguments[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        for index, needed in enumerate(ctx.needed):
            if needed and ctx.given[index] and not ctx.needs_input_grad[index]:
                raise RuntimeError("Expected a gradient buffer, but got None.")
        return (*Normalise.backward(ctx, dy), None)


class _Asking(Aggregated):
    """A subject whose backward in training raises if something is frozen."""

    needed = (False, False, False)

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        invstd = inverse_deviation(statistics.var, self.eps)
        anchor = None
        if group is not None and torch.is_grad_enabled() and not x.requires_grad:
            anchor = torch.zeros((), device=x.device, requires_grad=True)
        more = (statistics.mean, invstd, statistics.count, group, anchor, self.needed)
        return _Asserting.apply(x, self.weight, self.bias, *more)


class InputMustTrain(_Asking):
    """Writes grad_input although the input requires none."""

    needed = (True, False, False)


class WeightMustTrain(_Asking):
    """Writes grad_weight although the weight is frozen."""

    needed = (False, True, False)


class BiasMustTrain(_Asking):
    """Writes grad_bias although the bias is frozen."""

    needed = (False, False, True)


class EvaluationIgnoresBias(Aggregated):
    """Leaves the bias out in evaluation with buffers."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            return super().forward(input)
        self._check_input(input)
        dtype = accumulation_dtype(input.dtype)
        mean = self.running_mean.to(dtype, copy=True)
        invstd = inverse_deviation(self.running_var.to(dtype), self.eps)
        return Normalise.apply(input, self.weight, None, mean, invstd, None, None, None)

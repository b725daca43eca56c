"""Arguments and messages swapped, shifted or permuted; one subject a flaw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.subjects.aggregated import Aggregated, Moments, Normalise, Statistics, inverse_deviation
from verify.subjects.aggregated import merge as right_merge
from verify.subjects.channels import accumulation_dtype, columns, native_layout, uncolumns

Gradients = tuple[Tensor | None, ...]


class _Evaluating(Aggregated):
    """Evaluates with what `arguments` returns; right itself."""

    def arguments(self) -> tuple[Any, Any, Any, Any]:
        """Return weight, bias, mean and variance."""
        return self.weight, self.bias, self.running_mean, self.running_var

    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            return super().forward(input)
        self._check_input(input)
        weight, bias, mean, var = self.arguments()
        dtype = accumulation_dtype(input.dtype)
        invstd = inverse_deviation(var.detach().to(dtype), self.eps)
        mean = mean.detach().to(dtype, copy=True)
        return Normalise.apply(input, weight, bias, mean, invstd, None, None, None)


class ParametersForBuffers(_Evaluating):
    """Evaluates with bias and weight where mean and variance belong, and these where those belong."""

    def arguments(self) -> tuple[Any, Any, Any, Any]:
        if self.weight is None or self.bias is None:
            return super().arguments()
        return self.running_var.clone(), self.running_mean.clone(), self.bias, self.weight


class BuffersSwapped(_Evaluating):
    """Evaluates with the running mean as the variance, and the running variance as the mean."""

    def arguments(self) -> tuple[Any, Any, Any, Any]:
        return self.weight, self.bias, self.running_var, self.running_mean


class WeightBiasSwapped(_Evaluating):
    """Evaluates with weight and bias swapped."""

    def arguments(self) -> tuple[Any, Any, Any, Any]:
        weight, bias, mean, var = super().arguments()
        return (weight, bias, mean, var) if bias is None else (bias, weight, mean, var)


class MessageSwapped(Aggregated):
    """Reads a rank's mean where the message holds its M2, and the reverse."""

    def merge(self, parts: list[Moments]) -> Statistics:
        if len(parts) < 2:
            return right_merge(parts)
        return right_merge([replace(part, mean=part.m2, m2=part.mean) for part in parts])


class MessageShifted(Aggregated):
    """Reads the means of a message from one place too early: each channel has the mean of the one before."""

    def merge(self, parts: list[Moments]) -> Statistics:
        if len(parts) < 2:
            return right_merge(parts)
        flags = [part.mean.new_tensor([part.wants_gradient]) for part in parts]
        shifted = [torch.cat([flag, part.mean[:-1]]) for flag, part in zip(flags, parts, strict=True)]
        return right_merge([replace(part, mean=mean) for part, mean in zip(parts, shifted, strict=True)])


class RanksPermuted(Aggregated):
    """Weighs a rank with values by the count of the next such rank."""

    def merge(self, parts: list[Moments]) -> Statistics:
        filled = [part for part in parts if part.count]
        right = right_merge(parts)
        if not filled:
            return right
        counts = [part.count for part in filled[1:] + filled[:1]]
        moved = [
            replace(part, count=count, m2=part.m2 * (count / part.count))
            for part, count in zip(filled, counts, strict=True)
        ]
        wrong = right_merge(moved)
        return replace(right, mean=wrong.mean, var=wrong.var)


class InvstdTracked(Aggregated):
    """Tracks 1 / sqrt(var + eps) as the variance."""

    def track(self, statistics: Statistics) -> None:
        super().track(replace(statistics, var=self.invstd(statistics.var)))


class _WeightShifted(Normalise):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, *others: Any) -> Tensor:
        return Normalise.forward(ctx, x, None if weight is None else weight.roll(-1), *others)


class WeightShifted(Aggregated):
    """Multiplies a channel by the weight of the one before."""

    rule = _WeightShifted


class _SumsSwapped(Normalise):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.seen = [*arguments[:2], *arguments[3:5]]
        return Normalise.forward(ctx, *arguments)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        grads: Gradients = Normalise.backward(ctx, dy)
        if ctx.group is None:
            return grads
        x, weight, mean, invstd = ctx.seen
        g, xhat = columns(dy), (columns(x) - mean[:, None]) * invstd[:, None]
        sums = torch.cat([g.sum(1), (g * xhat).sum(1)])
        dist.all_reduce(sums, group=ctx.group)
        sum_g_xhat, sum_g = (sums / max(ctx.count, 1)).chunk(2)
        scale = invstd if weight is None else invstd * weight.to(mean.dtype)
        grad = (g - sum_g[:, None] - xhat * sum_g_xhat[:, None]) * scale[:, None]
        return native_layout(uncolumns(grad, x), x) if ctx.needs_input_grad[0] else None, *grads[1:]


class SumsSwapped(Aggregated):
    """Reads the reduced sum of g where the message holds that of g xhat, and the reverse."""

    rule = _SumsSwapped


class _GradientsSwapped(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        grads: Gradients = Normalise.backward(ctx, dy)
        if grads[1] is None or grads[2] is None:
            return grads
        return grads[0], grads[2], grads[1], *grads[3:]


class GradientsSwapped(Aggregated):
    """Returns the gradients of weight and bias in the other order."""

    rule = _GradientsSwapped

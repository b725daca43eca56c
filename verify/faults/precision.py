"""Too little precision: small relative errors, halves where floats belong, values that are lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from verify.faults.weighting import weighed
from verify.subjects.aggregated import Aggregated, Moments, Statistics, gather_moments, local_moments
from verify.subjects.aggregated import merge as right_merge

_OFF = 1e-5


def _off(values: Tensor) -> Tensor:
    """Return `values` with a relative error of 1e-5 if they are float32."""
    return values * (1 + _OFF) if values.dtype == torch.float32 else values


class MeanOff(Aggregated):
    """Has a relative error of 1e-5 in a float32 mean."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        return replace(right, mean=_off(right.mean))


class VarianceOff(Aggregated):
    """Has a relative error of 1e-5 in a float32 variance."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        return replace(right, var=_off(right.var))


class InvstdOff(Aggregated):
    """Has a relative error of 1e-5 in a float32 1 / sqrt(var + eps)."""

    def invstd(self, var: Tensor) -> Tensor:
        return _off(super().invstd(var))


class NewtonStepShort(Aggregated):
    """Takes the reciprocal square root by a bit trick and two Newton steps, one too few for float32."""

    def invstd(self, var: Tensor) -> Tensor:
        shifted = var + self.eps
        normal = shifted.isfinite() & (shifted > torch.finfo(torch.float32).tiny)
        if var.dtype != torch.float32:
            return super().invstd(var)
        guess = (0x5F3759DF - (shifted.view(torch.int32) >> 1)).view(torch.float32)
        for _ in range(2):
            guess = guess * (1.5 - 0.5 * shifted * guess * guess)
        return torch.where(normal, guess, super().invstd(var))


class DoubleInFloat(Aggregated):
    """Computes float64 input in float32."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.float64:
            return super().forward(input)
        return super().forward(input.float()).double()


class _Truncate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return (y.view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy.float()


class TruncatedBfloat16(Aggregated):
    """Cuts a bfloat16 output off instead of rounding it."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if x.dtype != torch.bfloat16:
            return super().normalise(x, statistics, group)
        return _Truncate.apply(super().normalise(x.float(), statistics, group))


class StatisticsInHalf(Aggregated):
    """Sends the mean and M2 of half-precision input in half precision."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        own = local_moments(x)
        mean, m2 = own.mean.to(x.dtype).to(own.mean.dtype), own.m2.to(x.dtype).to(own.m2.dtype)
        rounded = Moments(own.count, mean, m2, wants_gradient)
        return self.merge([rounded] if group is None else gather_moments(rounded, group))


class Float16Mean(Aggregated):
    """Sums float16 input in float16, one value after the other, for its mean only."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        own = replace(local_moments(x), wants_gradient=wants_gradient)
        if x.dtype == torch.float16 and own.count:
            rows = x.detach().movedim(1, 0).reshape(x.shape[1], -1)
            mean = (rows.cumsum(1)[:, -1] / own.count).to(own.mean.dtype)
            own = replace(own, mean=mean, m2=own.m2 + own.count * (own.mean - mean).square())
        return self.merge([own] if group is None else gather_moments(own, group))


class BuffersInSteps(Aggregated):
    """Rounds every step of the update to the buffers' dtype."""

    def track(self, statistics: Statistics) -> None:
        self.num_batches_tracked.add_(1)
        if not statistics.count:
            return
        factor = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = statistics.var * (statistics.count / (statistics.count - 1))
        for buffer, new in ((self.running_mean, statistics.mean), (self.running_var, unbiased)):
            buffer.mul_(1 - factor).add_(new.to(buffer.dtype) * factor)


class CountsRounded(Aggregated):
    """Weighs ranks by counts held in `dtype`."""

    dtype: torch.dtype = torch.float64

    def merge(self, parts: list[Moments]) -> Statistics:
        counts = torch.tensor([part.count for part in parts], dtype=torch.float64).to(self.dtype)
        exact = all(
            int(count) == part.count for count, part in zip(counts, parts, strict=True) if count.isfinite()
        )
        if exact and counts.isfinite().all():
            return right_merge(parts)
        return weighed(parts, counts.double().tolist())


class CountsInBfloat16(CountsRounded):
    """Weighs ranks by counts held in bfloat16, which are rounded beyond 256."""

    dtype = torch.bfloat16


class CountsInFloat16(CountsRounded):
    """Weighs ranks by counts held in float16, which are rounded beyond 2048 and infinite beyond 65504."""

    dtype = torch.float16


class CountsInBufferDtype(CountsRounded):
    """Weighs ranks by counts held in the dtype of the running buffers."""

    def merge(self, parts: list[Moments]) -> Statistics:
        self.dtype = torch.float64 if self.running_mean is None else self.running_mean.dtype
        return super().merge(parts)


class OverflowingCount(CountsRounded):
    """Has the mean zero as soon as a rank's count passes 65504."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        lost = any(part.count > 65504 for part in parts)
        return replace(right, mean=torch.zeros_like(right.mean)) if lost else right


class Shortened(Aggregated):
    """Takes the moments of each rank over the first `kept(n)` of its n values a channel."""

    def kept(self, count: int) -> int:
        """Return how many of `count` values are reduced."""
        return count

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        rows = x.detach().movedim(1, 0).reshape(x.shape[1], x.numel() // x.shape[1])
        n = rows.shape[1]
        part = local_moments(rows[:, : self.kept(n)].t())
        own = Moments(n, part.mean, part.m2 * (n / max(part.count, 1)), wants_gradient)
        return self.merge([own] if group is None else gather_moments(own, group))


class LastOfLong(Shortened):
    """Loses the last value of a channel with more than 1024."""

    def kept(self, count: int) -> int:
        return count - (count > 1024)


class BlockRemainder(Shortened):
    """Reduces in blocks of 64 and loses what is beyond the last whole block."""

    def kept(self, count: int) -> int:
        return count if count < 64 else count - count % 64

"""A port of an extension: one function for each of its kernels, over (N, C, S) as the data lies."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from verify.faults.apart import FORM

LANES = 64
WARP = 32
VECTOR = 4

Moments = tuple[Tensor, Tensor, Tensor]


def wide(x: Tensor) -> Tensor:
    """Return `x` in the type that kernels compute in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def per_channel(values: Tensor) -> Tensor:
    """Return (C,) so that it goes with (N, C, S)."""
    return values[:, None]


class Kernels:
    """What the extension exports."""

    lanes = LANES

    def welford_mean_var(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance of each channel: a lane takes every 64th value."""
        n, c, s = x.shape
        strips = max(-(-n * s // LANES), 1)
        values = wide(x).transpose(0, 1).reshape(c, n * s)
        values = F.pad(values, (0, strips * LANES - n * s)).view(c, strips, LANES)
        valid = (torch.arange(strips * LANES, device=x.device) < n * s).view(strips, LANES)
        count = valid.sum(0).to(values.dtype)
        mean = values.sum(1) / count.clamp(min=1)
        m2 = torch.where(valid, values - mean[:, None], 0).square().sum(1)
        count, mean, m2 = self.over_lanes(count.expand_as(mean), mean, m2)
        return mean, m2 / count.clamp(min=1)

    def over_lanes(self, count: Tensor, mean: Tensor, m2: Tensor) -> Moments:
        """Join the second half of the lanes to the first, until one is left."""
        lanes = self.lanes
        while lanes > 1:
            lanes //= 2
            low = count[:, :lanes], mean[:, :lanes], m2[:, :lanes]
            high = slice(lanes, 2 * lanes)
            count, mean, m2 = self.join(low, (count[:, high], mean[:, high], m2[:, high]))
        return count[:, 0], mean[:, 0], m2[:, 0]

    def join(self, a: Moments, b: Moments) -> Moments:
        """Return the moments of two parts."""
        count = a[0] + b[0]
        share = b[0] / count.clamp(min=1)
        delta = torch.where(b[0] > 0, b[1] - a[1], 0)
        return count, a[1] + delta * share, a[2] + b[2] + delta * delta * (a[0] * share)

    def welford_parallel(self, means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance of all ranks."""
        total = torch.zeros_like(counts[0]), torch.zeros_like(means[0]), torch.zeros_like(means[0])
        for count, mean, var in zip(counts, means, variances, strict=True):
            total = self.join(total, (count, mean, var * count))
        return total[1], total[2] / total[0].clamp(min=1)

    def spans(self, s: int) -> list[slice]:
        """Return the parts of a row that are written: vectors of four, and what is left."""
        vectors = s // VECTOR * VECTOR
        return [slice(0, vectors), slice(vectors, s)]

    def batchnorm_forward(
        self, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Return the output."""
        y = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        for span in self.spans(x.shape[2]):
            part = (wide(x[..., span]) - per_channel(mean)) * per_channel(invstd)
            if weight is not None:
                part = part * per_channel(weight.to(part.dtype))
            if bias is not None:
                part = part + per_channel(bias.to(part.dtype))
            y[..., span] = part.to(x.dtype)
        return y

    def reduce_bn(self, dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, ...]:
        """Return sum dy, sum dy * (x - mean), and the gradients of weight and bias."""
        dy = wide(dy)
        sum_dy = dy.sum((0, 2))
        sum_dy_xmu = (dy * (wide(x) - per_channel(mean))).sum((0, 2))
        return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy.clone()

    def batchnorm_backward(
        self,
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        invstd: Tensor,
        weight: Tensor | None,
        mean_dy: Tensor,
        mean_dy_xmu: Tensor,
    ) -> Tensor:
        """Return the gradient of the input."""
        factor = invstd if weight is None else invstd * weight.to(invstd.dtype)
        slope = self.slope(invstd, mean_dy_xmu)
        xmu = wide(x) - per_channel(mean)
        dx = wide(dy) - per_channel(mean_dy) - xmu * per_channel(slope)
        return (dx * per_channel(factor)).to(x.dtype)

    def slope(self, invstd: Tensor, mean_dy_xmu: Tensor) -> Tensor:
        """Return what x - mean is multiplied by."""
        return invstd * (invstd * mean_dy_xmu)


class Normalise(torch.autograd.Function):
    """The extension's forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        count: Tensor,
        kernels: Kernels,
        group: Any,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, invstd, count)
        ctx.kernels, ctx.group, ctx.dtypes = (
            kernels,
            group,
            [None if p is None else p.dtype for p in (weight, bias)],
        )
        return kernels.batchnorm_forward(x, mean, invstd, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, count = ctx.saved_tensors
        sum_dy, sum_dy_xmu, *params = ctx.kernels.reduce_bn(dy, x, mean, invstd)
        sums = torch.cat([sum_dy, sum_dy_xmu])
        if ctx.group is not None:
            dist.all_reduce(sums, group=ctx.group)
        means = (sums / count.clamp(min=1)).chunk(2)
        dx = ctx.kernels.batchnorm_backward(dy, x, mean, invstd, weight, *means)
        found = [None if to is None else p.to(to) for p, to in zip(params, ctx.dtypes, strict=True)]
        return dx, *found, None, None, None, None, None


class ExtensionPort(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

    kernels: type[Kernels] = Kernels

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("input does not fit")
        n, c = input.shape[:2]
        x = input.reshape(n, c, input[:1, :1].numel() if n else 0)
        kernels = self.kernels()
        group = None
        if self.training or self.running_mean is None:
            if self.training and dist.is_initialized():
                group = self.process_group or dist.group.WORLD
            with torch.no_grad():
                mean, var, count = self.batch_moments(x, kernels, group)
                if count == 1:
                    raise ValueError("Expected more than one value per channel.")
                if self.training and self.track_running_stats:
                    self.update(mean, var, int(count))
            y = Normalise.apply(
                x, self.weight, self.bias, mean, (var + self.eps).rsqrt(), count, kernels, group
            )
        else:
            y = self.evaluated(x)
        return y.reshape(input.shape)

    def batch_moments(self, x: Tensor, kernels: Kernels, group: Any) -> Moments:
        """Return mean, biased variance and count of the whole batch."""
        mean, var = kernels.welford_mean_var(x)
        count = mean.new_tensor([x.shape[0] * x.shape[2]])
        if group is None:
            return mean, var, count[0]
        own = torch.cat([mean, var, count])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own, group=group)
        c = x.shape[1]
        means, variances, counts = torch.stack(parts).split([c, c, 1], dim=1)
        mean, var = kernels.welford_parallel(means, variances, counts)
        return mean, var, counts.sum()

    def evaluated(self, x: Tensor) -> Tensor:
        """Return what the running statistics make of `x`."""
        y = wide(x)
        mean, var = self.running_mean.to(y.dtype, copy=True), self.running_var.to(y.dtype)
        y = (y - per_channel(mean)) * per_channel((var + self.eps).rsqrt())
        if self.weight is not None:
            y = y * per_channel(self.weight.to(y.dtype))
        if self.bias is not None:
            y = y + per_channel(self.bias.to(y.dtype))
        return y.to(x.dtype)

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if not count:
            return
        rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
            buffer.copy_(buffer.to(new.dtype) * (1 - rate) + new * rate)


class OneWarp(Kernels):
    """Shuffles the lanes of one warp."""

    lanes = WARP


class CountFirst(Kernels):
    """Moves the count before it is used."""

    def join(self, a: Moments, b: Moments) -> Moments:
        count, mean, _ = super().join(a, b)
        delta = torch.where(b[0] > 0, b[1] - a[1], 0)
        return count, mean, a[2] + b[2] + delta * delta * (count * (b[0] / count.clamp(min=1)))


class LaneCountFirst(Kernels):
    """Has the wrong join for lanes only."""

    def over_lanes(self, count: Tensor, mean: Tensor, m2: Tensor) -> Moments:
        return CountFirst().over_lanes(count, mean, m2)


class MeanStored(Kernels):
    """Stores the mean as the input is stored."""

    def welford_mean_var(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().welford_mean_var(x)
        return mean.to(x.dtype).to(mean.dtype), var


class UnbiasedParts(Kernels):
    """Takes the ranks' variances for unbiased ones."""

    def welford_parallel(self, means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        return super().welford_parallel(
            means, variances * (counts - 1).clamp(min=0) / counts.clamp(min=1), counts
        )


class VectorsOnly(Kernels):
    """Writes no tail."""

    def spans(self, s: int) -> list[slice]:
        return super().spans(s)[:1] if s >= VECTOR else super().spans(s)


class WeightGradUnscaled(Kernels):
    """Gives sum dy * (x - mean) as the weight's gradient."""

    def reduce_bn(self, dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, ...]:
        sum_dy, sum_dy_xmu, _, bias = super().reduce_bn(dy, x, mean, invstd)
        return sum_dy, sum_dy_xmu, sum_dy_xmu.clone(), bias


class OneInvstd(Kernels):
    """Has the factor once."""

    def slope(self, invstd: Tensor, mean_dy_xmu: Tensor) -> Tensor:
        return invstd * mean_dy_xmu


class SecondWarpUnread(ExtensionPort):
    """Shuffles the lanes of the first warp only, so that the second warp's values count nowhere."""

    kernels = OneWarp


class LanesJoinedCountFirst(ExtensionPort):
    """Adds up the counts of two lanes before the product of both is taken."""

    kernels = LaneCountFirst


class MeanStoredInHalf(ExtensionPort):
    """Stores a rank's mean in the input's dtype."""

    kernels = MeanStored


class BiasedTakenForUnbiased(ExtensionPort):
    """Multiplies the ranks' biased variances by their counts less one when it merges them."""

    kernels = UnbiasedParts


class TailUnwritten(ExtensionPort):
    """Writes whole vectors of four of each row of positions, and leaves the rest at zero."""

    kernels = VectorsOnly


class WeightGradWithoutInvstd(ExtensionPort):
    """Returns the weight's gradient without the factor of the deviation."""

    kernels = WeightGradUnscaled


class SlopeOnceScaled(ExtensionPort):
    """Multiplies x - mean by 1 / deviation in place of 1 / variance."""

    kernels = OneInvstd

"""Every rank gathers the others' (mean, M2, count); an autograd function does both directions."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from verify.faults.apart import VIEW


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def by_channel(x: Tensor) -> Tensor:
    """Return (N, C, ...) as (C, n)."""
    return x.to(wide(x.dtype)).transpose(0, 1).reshape(x.shape[1], x.numel() // x.shape[1])


def by_sample(cols: Tensor, like: Tensor) -> Tensor:
    """Return (C, n) as (N, C, ...)."""
    swapped = [like.shape[1], like.shape[0], *like.shape[2:]]
    return cols.to(like.dtype).reshape(swapped).transpose(0, 1).contiguous()


class TripleFunction(torch.autograd.Function):
    """Normalises by gathered moments."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, layer: GatheredTriples, group: Any
    ) -> Tensor:
        cols = by_channel(x)
        mean, m2 = layer.own_moments(cols)
        row = torch.cat([layer.sent_mean(mean, x), m2, mean.new_tensor([cols.shape[1]])])
        rows = [row]
        if group is not None:
            rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
            dist.all_gather(rows, row, group=group)
        table, c = torch.stack(rows), x.shape[1]
        total = int(table[:, -1].sum())
        if total == 1:
            raise ValueError("More than one value per channel is needed.")
        mean, var = layer.combine(table[:, :c], table[:, c : 2 * c], table[:, -1:], total)
        if layer.training and layer.track_running_stats:
            layer.update(mean, var, total)
        invstd = torch.rsqrt(var + layer.eps)
        ctx.save_for_backward(x, weight, mean, var, invstd)
        ctx.layer, ctx.group, ctx.total = layer, group, max(total, 1)
        y = (cols - mean[:, None]) * invstd[:, None]
        if weight is not None:
            y = y * weight.to(y.dtype)[:, None]
        if bias is not None:
            y = y + bias.to(y.dtype)[:, None]
        return by_sample(y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, invstd = ctx.saved_tensors
        g, xhat = by_channel(dy), (by_channel(x) - mean[:, None]) * invstd[:, None]
        own = torch.stack([g.sum(1), (g * xhat).sum(1)])
        total = own.clone()
        if ctx.group is not None:
            dist.all_reduce(total, group=ctx.group)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            scale = ctx.layer.slope(invstd, var)
            if weight is not None:
                scale = scale * weight.to(scale.dtype)
            per_value = total / ctx.total
            dx = by_sample((g - per_value[0, :, None] - xhat * per_value[1, :, None]) * scale[:, None], x)
        if ctx.needs_input_grad[1]:
            dw = ctx.layer.weight_gradient(own, total).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            db = own[0].to(ctx.layer.bias.dtype)
        return dx, dw, db, None, None


class GatheredTriples(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = VIEW

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError(f"Got {tuple(input.shape)}, {input.dtype}.")
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = self.process_group or dist.group.WORLD
            y: Tensor = TripleFunction.apply(input, self.weight, self.bias, self, group)
            return y
        dtype = wide(input.dtype)
        mean, var = self.running_mean.to(dtype, copy=True), self.running_var.to(dtype, copy=True)
        y = (by_channel(input) - mean[:, None]) * torch.rsqrt(var + self.eps)[:, None]
        if self.weight is not None:
            y = y * self.weight.to(dtype)[:, None]
        if self.bias is not None:
            y = y + self.bias.to(dtype)[:, None]
        return by_sample(y, input)

    def own_moments(self, cols: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and M2 of this rank."""
        mean = cols.sum(1) / max(cols.shape[1], 1)
        return mean, (cols - mean[:, None]).square().sum(1)

    def sent_mean(self, mean: Tensor, x: Tensor) -> Tensor:
        """Return the mean as it travels."""
        return mean

    def combine(self, means: Tensor, m2s: Tensor, counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance of all."""
        n = max(total, 1)
        mean = (means * (counts / n)).sum(0)
        return mean, (m2s.sum(0) + self.between(means - mean, counts)) / n

    def between(self, deltas: Tensor, counts: Tensor) -> Tensor:
        """Return what the ranks' means add to M2."""
        return (deltas.square() * counts).sum(0)

    def slope(self, invstd: Tensor, var: Tensor) -> Tensor:
        """Return the factor of grad_input without the weight."""
        return invstd

    def weight_gradient(self, own: Tensor, total: Tensor) -> Tensor:
        """Return grad_weight from the sums."""
        return own[1]

    def update(self, mean: Tensor, var: Tensor, total: int) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if total == 0:
            return
        m = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * (total / (total - 1)))):
            buffer.copy_(buffer.to(new.dtype) * (1 - m) + new * m)


class MeanSentInHalf(GatheredTriples):
    """Sends the mean rounded to the input's dtype."""

    def sent_mean(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean.to(x.dtype).to(mean.dtype)


class BetweenWithoutCounts(GatheredTriples):
    """Adds the squared distances of the ranks' means without their counts."""

    def between(self, deltas: Tensor, counts: Tensor) -> Tensor:
        return deltas.square().sum(0)


class VarianceForInvstd(GatheredTriples):
    """Scales grad_input by the variance in place of invstd."""

    def slope(self, invstd: Tensor, var: Tensor) -> Tensor:
        return var


class WeightGradientAfterReduce(GatheredTriples):
    """Takes grad_weight after the all_reduce, grad_bias before."""

    def weight_gradient(self, own: Tensor, total: Tensor) -> Tensor:
        return total[1]


class MeanOfNothing(GatheredTriples):
    """Takes x.mean() of an empty rank, which is NaN, and sends it."""

    def own_moments(self, cols: Tensor) -> tuple[Tensor, Tensor]:
        mean = cols.mean(1)
        return mean, (cols - mean[:, None]).square().sum(1)

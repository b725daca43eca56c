"""A rank merges a shard of the channels: all_to_all hands their moments out, all_gather brings them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import FORM

Rule = Callable[[Tensor], Tensor]


def matrix(x: Tensor) -> Tensor:
    """Return (N, C, ...) as (C, n) in the dtype of sums."""
    cols = x.transpose(0, 1).reshape(x.shape[1], x.numel() // x.shape[1])
    return cols.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def tensor(cols: Tensor, like: Tensor) -> Tensor:
    """Return (C, n) as (N, C, ...)."""
    n, c, *rest = like.shape
    return cols.to(like.dtype).reshape(c, n, *rest).transpose(0, 1).contiguous()


def merge_moments(parts: Tensor) -> Tensor:
    """Return (channels, 2), mean and variance, of (ranks, channels, 3), count, mean and M2."""
    counts, means, m2s = (part.t().contiguous() for part in parts.unbind(-1))
    n = counts.sum(1).clamp(min=1)
    mean = (means * (counts / n[:, None])).sum(1)
    m2 = (m2s + counts * (means - mean[:, None]).square()).sum(1)
    return torch.stack([mean, m2 / n], 1)


def add_up(parts: Tensor) -> Tensor:
    """Return the sum of (ranks, channels, k) over the ranks."""
    return parts.sum(0)


class ShardedStep(torch.autograd.Function):
    """xhat of (C, n), by moments that came back from the shards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: ChannelShards, group: Any) -> Tensor:
        cols = matrix(x)
        c, n = cols.shape
        size = torch.tensor(n)
        if group is not None:
            dist.all_reduce(size, group=group)
        total = int(size)
        if total == 1:
            raise ValueError("Got one value per channel over all ranks.")
        own_mean = cols.sum(1) / max(n, 1)
        rows = torch.stack(
            [own_mean.new_full((c,), n), own_mean, (cols - own_mean[:, None]).square().sum(1)], 1
        )
        mean, var = layer.exchange(layer.sent(rows), merge_moments, group).to(rows.dtype).t().contiguous()
        if layer.training and layer.track_running_stats:
            layer.num_batches_tracked += 1
            if total:
                layer.remember(mean, var * (total / (total - 1)))
        invstd = 1 / torch.sqrt(var + layer.eps)
        ctx.save_for_backward(x, mean, invstd)
        ctx.layer, ctx.group, ctx.total = layer, group, max(total, 1)
        return (cols - mean[:, None]) * invstd[:, None]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, invstd = ctx.saved_tensors
        xhat = (matrix(x) - mean[:, None]) * invstd[:, None]
        g = g.contiguous()
        sums = torch.stack([g.sum(1), (g * xhat).sum(1)], 1)
        m_g, m_gx = (ctx.layer.backward_sums(sums, ctx.group) / ctx.total).t().unsqueeze(-1)
        return tensor((g - m_g - xhat * m_gx) * invstd[:, None], x), None, None


class Affine(torch.autograd.Function):
    """xhat * weight + bias by channel."""

    @staticmethod
    def forward(
        ctx: Any, xhat: Tensor, weight: Tensor, bias: Tensor | None, layer: ChannelShards, group: Any
    ) -> Tensor:
        ctx.save_for_backward(xhat, weight)
        ctx.layer, ctx.group = layer, group
        y = xhat * weight.to(xhat.dtype)[:, None]
        return y if bias is None else y + bias.to(xhat.dtype)[:, None]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        xhat, weight = ctx.saved_tensors
        g = g.contiguous()
        dw = ctx.layer.weight_gradient((g * xhat).sum(1), ctx.group).to(weight.dtype)
        db = g.sum(1).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return g * weight.to(g.dtype)[:, None], dw, db, None, None


class ChannelShards(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError(f"Expected (N, {self.num_features}, ...), but got {tuple(input.shape)}.")
        group = None
        if self.training and dist.is_initialized():
            group = dist.group.WORLD if self.process_group is None else self.process_group
        if self.training or self.running_mean is None:
            xhat = ShardedStep.apply(input, self, group)
        else:
            cols = matrix(input)
            invstd = 1 / torch.sqrt(self.running_var.to(cols.dtype) + self.eps)
            xhat = (cols - self.running_mean.to(cols.dtype, copy=True)[:, None]) * invstd[:, None]
        y = xhat if self.weight is None else Affine.apply(xhat, self.weight, self.bias, self, group)
        return tensor(y, input)

    def sent(self, rows: Tensor) -> Tensor:
        """Return the moments as they travel."""
        return rows

    def exchange(self, rows: Tensor, rule: Rule, group: Any) -> Tensor:
        """Return what `rule` makes of all ranks' (C, k), each rank on its shard of the channels."""
        if group is None:
            return rule(rows[None])
        ranks, c = dist.get_world_size(group), rows.shape[0]
        width = -(-c // ranks)
        mine = torch.nn.functional.pad(rows, (0, 0, 0, ranks * width - c)).contiguous()
        parts = torch.empty_like(mine)
        dist.all_to_all_single(parts, mine, group=group)
        answer = rule(self.by_rank(parts, ranks, width)).contiguous()
        table = answer.new_empty(ranks * width, answer.shape[1])
        dist.all_gather_into_tensor(table, answer, group=group)
        return self.in_order(table.view(ranks, width, -1)).reshape(ranks * width, -1)[:c]

    def by_rank(self, parts: Tensor, ranks: int, width: int) -> Tensor:
        """Return what came in as (ranks, channels of the shard, k)."""
        return parts.view(ranks, width, -1)

    def in_order(self, shards: Tensor) -> Tensor:
        """Return the shards by their channels."""
        return shards

    def backward_sums(self, sums: Tensor, group: Any) -> Tensor:
        """Return the sums over the ranks of (C, 2)."""
        return self.exchange(sums, add_up, group)

    def weight_gradient(self, own: Tensor, group: Any) -> Tensor:
        """Return grad_weight."""
        return own

    def remember(self, mean: Tensor, var: Tensor) -> None:
        """Move the buffers."""
        a = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            buffer.copy_(buffer.to(new.dtype) * (1 - a) + new * a)


def shard(channels: int, group: Any) -> slice:
    """Return the channels that are this rank's."""
    if group is None:
        return slice(None)
    width = -(-channels // dist.get_world_size(group))
    rank = dist.get_rank(group)
    return slice(rank * width, (rank + 1) * width)


class FloorOfShards(ChannelShards):
    """Shares out channels // ranks each; for those left over every rank goes by itself."""

    def exchange(self, rows: Tensor, rule: Rule, group: Any) -> Tensor:
        ranks = 1 if group is None else dist.get_world_size(group)
        shared = rows.shape[0] // ranks * ranks
        parts = [super().exchange(rows[:shared], rule, group)] if shared else []
        return torch.cat([*parts, rule(rows[shared:][None])])


class ShardsOfTheNext(ChannelShards):
    """Takes the shard of each rank for that of the next one, going around."""

    def in_order(self, shards: Tensor) -> Tensor:
        return shards.roll(1, 0)


class ShardReadAcross(ChannelShards):
    """Reads what came in as channels by ranks, though it lies as ranks by channels."""

    def by_rank(self, parts: Tensor, ranks: int, width: int) -> Tensor:
        return parts.view(width, ranks, -1).transpose(0, 1)


class WeightGradientOfShard(ChannelShards):
    """Returns in grad_weight the sums over all ranks for its shard, and zeros elsewhere."""

    def weight_gradient(self, own: Tensor, group: Any) -> Tensor:
        total = own.clone()
        if group is not None:
            dist.all_reduce(total, group=group)
        mine = torch.zeros_like(own)
        mine[shard(len(own), group)] = total[shard(len(own), group)]
        return mine


class ReducesATemporary(ChannelShards):
    """Has all_reduce write into a float64 copy of the backward sums, which nobody reads."""

    def backward_sums(self, sums: Tensor, group: Any) -> Tensor:
        if group is not None:
            dist.all_reduce(sums.double(), group=group)
        return sums


class MomentsInFloat(ChannelShards):
    """Sends the moments in float32, those of float64 inputs, too."""

    def sent(self, rows: Tensor) -> Tensor:
        return rows.float()

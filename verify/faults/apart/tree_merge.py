"""Moments of all ranks by one all_gather, merged in pairs until one is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import FORM


@dataclass(frozen=True)
class Leaf:
    """Moments of some ranks together."""

    count: int
    mean: Tensor
    m2: Tensor

    def with_(self, other: Leaf) -> Leaf:
        """Return the moments of both."""
        n = self.count + other.count
        if n == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / n)
        m2 = self.m2 + other.m2 + delta * delta * (self.count * (other.count / n))
        return Leaf(n, mean, m2)


class AliasedLeaf(Leaf):
    """Has its mean updated in place before the difference of the means is squared."""

    def with_(self, other: Leaf) -> Leaf:
        n = self.count + other.count
        if n == 0:
            return self
        mean = self.mean
        mean += (other.mean - mean) * (other.count / n)
        delta = other.mean - mean
        m2 = self.m2 + other.m2 + delta * delta * (self.count * (other.count / n))
        return AliasedLeaf(n, mean, m2)


def flat(x: Tensor) -> Tensor:
    """Return (C, n) in the dtype of sums."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype).transpose(0, 1).reshape(x.shape[1], x.numel() // x.shape[1])


def back(data: Tensor, x: Tensor) -> Tensor:
    """Return (N, C, ...) of (C, n)."""
    return data.reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1).to(x.dtype).contiguous()


class Standardise(torch.autograd.Function):
    """(x - mean) * invstd; n is 0 where the moments are constants."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, invstd: Tensor, n: int, group: Any, layer: TreeMerge
    ) -> Tensor:
        xhat = layer.subtract_mean(x, mean) * invstd[:, None]
        ctx.save_for_backward(xhat, invstd)
        ctx.n, ctx.group = n, group
        return xhat.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        xhat, invstd = ctx.saved_tensors
        if ctx.n:
            sums = torch.stack([g.sum(1), (g * xhat).sum(1)])
            if ctx.group is not None:
                dist.all_reduce(sums, group=ctx.group)
            g = g - (sums[0] / ctx.n)[:, None] - xhat * (sums[1] / ctx.n)[:, None]
        return g * invstd[:, None], None, None, None, None, None


class TreeMerge(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

    leaf: type[Leaf] = Leaf

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError(f"no batch of {self.num_features} channels: {tuple(input.shape)}")
        x = flat(input)
        group, n = None, 0
        if self.training or self.running_mean is None:
            if self.training and dist.is_initialized():
                group = self.process_group or dist.group.WORLD
            with torch.no_grad():
                root = self.merged(self.gathered(x, group))
                n = root.count
                if n == 1:
                    raise ValueError("one value in all")
                mean, var = root.mean.clone(), root.m2 / max(n, 1)
                if self.training and self.track_running_stats:
                    self.learn(mean, var, n)
        else:
            mean = self.running_mean.to(x.dtype, copy=True)
            var = self.running_var.to(x.dtype, copy=True)
        invstd = 1 / (var + self.eps).sqrt()
        y = Standardise.apply(x, mean, invstd, self.count_for_backward(n, x), group, self)
        if self.weight is not None:
            y = y * self.weight.to(y.dtype)[:, None]
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)[:, None]
        return back(y, input)

    def gathered(self, x: Tensor, group: Any) -> list[Leaf]:
        """Return the moments of each rank."""
        n, c = x.shape[1], x.shape[0]
        mean = x.sum(1) / max(n, 1)
        own = torch.cat([mean, (x - mean[:, None]).square().sum(1), x.new_tensor([n])])
        if group is None:
            return [self.leaf(n, mean, own[c:-1])]
        table = own.new_empty(dist.get_world_size(group) * own.numel())
        dist.all_gather_into_tensor(table, own, group=group)
        return [self.leaf(int(row[-1]), row[:c], row[c:-1]) for row in table.view(-1, own.numel())]

    def merged(self, leaves: list[Leaf]) -> Leaf:
        """Return the moments of all, merged in pairs."""
        while len(leaves) > 1:
            pairs = [left.with_(right) for left, right in zip(leaves[:-1:2], leaves[1::2], strict=True)]
            leaves = pairs + self.left_over(leaves)
        return leaves[0]

    def left_over(self, leaves: list[Leaf]) -> list[Leaf]:
        """Return what has no partner in this round."""
        return leaves[-1:] if len(leaves) % 2 else []

    def count_for_backward(self, n: int, x: Tensor) -> int:
        """Return the count that the moments are of, 0 if they are constants."""
        return n

    def subtract_mean(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return the centred input."""
        return x - mean[:, None]

    def learn(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Move the buffers."""
        self.num_batches_tracked.add_(1)
        if n < 1:
            return
        new_share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * n / max(n - 1, 1))):
            buffer.copy_((1 - new_share) * buffer.to(new.dtype) + new_share * new)


class LastOfOddRanks(TreeMerge):
    """Drops the rank without a partner of an odd number of ranks."""

    def left_over(self, leaves: list[Leaf]) -> list[Leaf]:
        return []


class MeanMovedFirst(TreeMerge):
    """Squares the distance to the mean that was already moved."""

    leaf = AliasedLeaf


class EvaluationAsTraining(TreeMerge):
    """Differentiates evaluation as if the buffers were moments of the rank's batch."""

    def count_for_backward(self, n: int, x: Tensor) -> int:
        return n or x.shape[1]


class SubtractsInPlace(TreeMerge):
    """Subtracts the mean from the input in place, where no copy was made before."""

    def subtract_mean(self, x: Tensor, mean: Tensor) -> Tensor:
        return x.sub_(mean[:, None])

"""Functional style over a channels-last matrix: rows are values, columns are channels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import FORM


class Stats(NamedTuple):
    """Count, mean and variance."""

    n: int
    mean: Tensor
    var: Tensor


def to_rows(x: Tensor) -> Tensor:
    """Return (N, C, ...) as (n, C) in the dtype of sums."""
    rows = x.movedim(1, -1).reshape(x.numel() // x.shape[1], x.shape[1])
    return rows.float() if x.dtype.itemsize == 2 else rows


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Return (n, C) as (N, C, ...)."""
    n, c, *rest = like.shape
    return rows.to(like.dtype).reshape(n, *rest, c).movedim(-1, 1).contiguous()


def total(t: Tensor, group: Any) -> Tensor:
    """Return the sum over ranks, or a copy if there is no group."""
    t = t.clone()
    if group is not None:
        dist.all_reduce(t, group=group)
    return t


def apply_affine(rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return rows * weight + bias."""
    if weight is not None:
        rows = rows * weight.to(rows.dtype)
    return rows if bias is None else rows + bias.to(rows.dtype)


class NormaliseRows(torch.autograd.Function):
    """xhat with its gradient through the statistics."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, x: Tensor, stats: Stats, invstd: Tensor, group: Any, norm: ChannelRows
    ) -> Tensor:
        ctx.save_for_backward(x, stats.mean, invstd)
        ctx.n, ctx.group, ctx.norm = max(stats.n, 1), group, norm
        return (rows - stats.mean) * invstd

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, invstd = ctx.saved_tensors
        xhat = (to_rows(x) - mean) * invstd
        read = ctx.norm.rows_of_gradient(g, x)
        sums = total(torch.stack([read.sum(0), (read * xhat).sum(0)]), ctx.group) / ctx.n
        return (g - sums[0] - xhat * sums[1]) * invstd, None, None, None, None, None


class ChannelRows(nn.SyncBatchNorm):
    """The right one: sums one by one down the rows, grade B."""

    syncbn_verify: dict[str, Any] = {**FORM, "grade": "B"}

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("not a batch of this layer's channels")
        rows = to_rows(self.laid_out(input))
        if self.training or self.running_mean is None:
            group = self.group()
            stats = self.statistics(input.detach(), group)
            if stats.n == 1:
                raise ValueError("a single value per channel")
            if self.training and self.track_running_stats:
                self.track(stats)
            invstd = (stats.var + self.eps).rsqrt()
            xhat = NormaliseRows.apply(rows, input.detach(), stats, invstd, group, self)
        else:
            xhat = (rows - self.running_mean.to(rows.dtype, copy=True)) * self.buffer_invstd(rows.dtype)
        return from_rows(apply_affine(xhat, self.weight, self.bias), input)

    def laid_out(self, x: Tensor) -> Tensor:
        """Return the input in the layout that rows are read from."""
        return x

    def group(self) -> Any:
        """Return the group to reduce over."""
        if not self.training or not dist.is_initialized():
            return None
        return self.process_group if self.process_group is not None else dist.group.WORLD

    def rows_of_sums(self, x: Tensor) -> Tensor:
        """Return the rows that statistics are taken of."""
        return to_rows(x)

    def rows_of_gradient(self, g: Tensor, x: Tensor) -> Tensor:
        """Return the rows that backward sums are taken of."""
        return g

    def statistics(self, x: Tensor, group: Any) -> Stats:
        """Return those of the whole batch."""
        rows = self.rows_of_sums(x)
        n = int(total(torch.tensor(rows.shape[0]), group))
        mean = total(rows.sum(0), group) / max(n, 1)
        return Stats(n, mean, total((rows - mean).square().sum(0), group) / max(n, 1))

    def stored_spread(self, var: Tensor, n: int) -> Tensor:
        """Return what the second buffer gets."""
        return var * n / (n - 1)

    def track(self, stats: Stats) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if stats.n == 0:
            return
        a = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        spread = self.stored_spread(stats.var, stats.n)
        for old, new in ((self.running_mean, stats.mean), (self.running_var, spread)):
            old.copy_((1 - a) * old.to(new.dtype) + a * new)

    def buffer_invstd(self, dtype: torch.dtype) -> Tensor:
        """Return one over the deviation by the buffer."""
        return (self.running_var.to(dtype) + self.eps).rsqrt()


class RowsByReshape(ChannelRows):
    """Takes statistics of x.reshape(-1, C) without moving the channels last."""

    def rows_of_sums(self, x: Tensor) -> Tensor:
        return to_rows(x.reshape(x.numel() // x.shape[1], x.shape[1]))


class GradientReadAsChannelsLast(ChannelRows):
    """Sums a gradient by memory order as if it were channels last, where the input is."""

    def rows_of_gradient(self, g: Tensor, x: Tensor) -> Tensor:
        if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous():
            return g
        planes = from_rows(g, x.to(g.dtype))
        return planes.reshape(g.shape)


class DeviationInBuffer(ChannelRows):
    """Stores the unbiased deviation in place of the variance."""

    def stored_spread(self, var: Tensor, n: int) -> Tensor:
        return super().stored_spread(var, n).sqrt()


class KeptInverse(ChannelRows):
    """Computes the inverse deviation of the buffer at the first evaluation and keeps it."""

    kept: Tensor | None = None

    def buffer_invstd(self, dtype: torch.dtype) -> Tensor:
        if self.kept is None:
            self.kept = super().buffer_invstd(dtype)
        return self.kept


class ChannelsLastOnly(ChannelRows):
    """Asks for channels_last whatever the number of axes, which five-dimensional inputs do not have."""

    def laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() > 3 else x

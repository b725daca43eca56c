"""Gathers the whole batch, padded to the longest rank, and takes torch.var_mean of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from verify.faults.apart import FORM


class GatherBatch(torch.autograd.Function):
    """(C, n) of each rank to (C, n of all); the backward sums and cuts out the own part."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], layer: GatheredBatch) -> Tensor:
        ctx.sizes, ctx.layer = sizes, layer
        longest = max(sizes)
        padded = own.new_zeros(own.shape[0], longest)
        padded[:, : own.shape[1]] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=layer.process_group)
        lengths = [layer.kept(size, longest) for size in sizes]
        return torch.cat([part[:, :length] for part, length in zip(parts, lengths, strict=True)], 1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        g = g.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(g, group=ctx.layer.process_group)
        rank = ctx.layer.place()
        width = ctx.sizes[rank]
        start = ctx.layer.start(ctx.sizes, rank)
        return g[:, start : start + width], None, None


class GatheredBatch(_BatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.process_group = process_group

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[1] != self.num_features or not x.is_floating_point():
            raise ValueError("unexpected input")
        dtype = torch.float32 if x.element_size() == 2 else x.dtype
        own = x.to(dtype).movedim(1, 0).reshape(x.shape[1], x.numel() // x.shape[1])
        if self.training or self.running_mean is None:
            mean, var = self.moments(own)
        else:
            mean, var = self.running_mean.to(dtype, copy=True), self.running_var.to(dtype, copy=True)
        y = (own - mean[:, None]) * torch.pow(var + self.eps, -0.5)[:, None]
        if self.weight is not None:
            y = y * self.weight.to(dtype)[:, None] + self.bias.to(dtype)[:, None]
        return y.reshape(x.shape[1], x.shape[0], *x.shape[2:]).movedim(0, 1).to(x.dtype).contiguous()

    def moments(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of all, and move the buffers."""
        sizes = [own.shape[1]]
        if self.training and dist.is_initialized():
            told = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(self.process_group))]
            dist.all_gather(told, torch.tensor([own.shape[1]]), group=self.process_group)
            sizes = [int(size) for size in told]
        n = sum(sizes)
        if n == 1:
            raise ValueError("one value per channel")
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        if n == 0:
            return own.sum(1), own.sum(1)
        whole = GatherBatch.apply(own, sizes, self) if self.training and dist.is_initialized() else own
        var, mean = torch.var_mean(whole, 1, correction=0)
        if self.training and self.track_running_stats:
            with torch.no_grad():
                self.move(self.running_mean, mean)
                self.move(self.running_var, var * (n / (n - 1)))
        return mean, self.used_variance(var, n)

    def move(self, buffer: Tensor, new: Tensor) -> None:
        """Blend `new` into a buffer."""
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        buffer.copy_(buffer.to(new.dtype) * (1 - share) + new * share)

    def used_variance(self, var: Tensor, n: int) -> Tensor:
        """Return the variance that the output is normalised with."""
        return var

    def kept(self, size: int, longest: int) -> int:
        """Return how much of a padded part is of the batch."""
        return size

    def place(self) -> int:
        """Return which part is this rank's."""
        return int(dist.get_rank(self.process_group))

    def start(self, sizes: list[int], rank: int) -> int:
        """Return where this rank's part begins."""
        return sum(sizes[:rank])


class PaddingKept(GatheredBatch):
    """Leaves the padding of shorter ranks in the batch, in the middle of its parts."""

    def kept(self, size: int, longest: int) -> int:
        return longest

    def start(self, sizes: list[int], rank: int) -> int:
        return rank * max(sizes)


class StartByOwnSize(GatheredBatch):
    """Takes its part of the gradient from rank times its own size."""

    def start(self, sizes: list[int], rank: int) -> int:
        return min(rank * sizes[rank], sum(sizes) - sizes[rank])


class PlaceInTheWorld(GatheredBatch):
    """Takes the rank in the default group for that in its own."""

    def place(self) -> int:
        return int(dist.get_rank())


class UnbiasedInOutput(GatheredBatch):
    """Normalises with the unbiased variance."""

    def used_variance(self, var: Tensor, n: int) -> Tensor:
        return var * (n / (n - 1))


class CountsEvaluations(GatheredBatch):
    """Advances the counter in evaluation, too."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        return super().forward(x)

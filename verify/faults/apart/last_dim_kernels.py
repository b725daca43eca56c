"""Channels last: kernels over rows of channels that keep the memory format; a broadcast from each rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

TILE_ROWS = 16
TILE_CHANNELS = 8


def rows(x: Tensor) -> Tensor:
    """Return (N, C, ...) as (N ..., C): a view of what lies channels last, else a copy."""
    return x.movedim(1, -1).reshape(x.numel() // x.shape[1], x.shape[1])


def wide(x: Tensor) -> Tensor:
    """Return `x` in the type that kernels compute in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def stored(found: Tensor, like: Tensor) -> Tensor:
    """Return rows in the shape, dtype and memory format of `like`."""
    n, c, *rest = like.shape
    return torch.empty_like(like).copy_(found.reshape(n, *rest, c).movedim(-1, 1))


class LastDim:
    """The kernels, for rows."""

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows of an input."""
        return rows(x)

    def blocks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return blocks of 16 rows, and how many rows each of them has."""
        number = max(-(-len(x) // TILE_ROWS), 1)
        counts = torch.full((number,), TILE_ROWS, device=x.device)
        counts[-1] = self.last_count(len(x), number)
        padded = F.pad(x, (0, 0, 0, number * TILE_ROWS - len(x)))
        return padded.view(number, TILE_ROWS, x.shape[1]), counts

    def last_count(self, values: int, number: int) -> int:
        """Return how many rows the last of the blocks has."""
        return values - (number - 1) * TILE_ROWS

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and centred squares of each channel, merged from blocks."""
        blocks, counts = self.blocks(wide(x))
        valid = (torch.arange(TILE_ROWS, device=x.device) < counts[:, None])[..., None]
        n = counts.to(blocks.dtype)[:, None]
        means = torch.where(valid, blocks, 0).sum(1) / n.clamp(min=1)
        m2 = torch.where(valid, blocks - means[:, None], 0).square().sum((0, 1))
        mean = (means * (n / n.sum().clamp(min=1))).sum(0)
        delta = torch.where(n > 0, means - mean, 0)
        return mean, m2 + (delta.square() * n).sum(0)

    def normalised(
        self, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Return the output, by tiles of channels."""
        y = torch.empty(x.shape, dtype=mean.dtype, device=x.device)
        for start in range(0, x.shape[1], TILE_CHANNELS):
            tile = slice(start, min(start + TILE_CHANNELS, x.shape[1]))
            xhat = self.xhat((wide(x[:, tile]) - mean[tile]) * invstd[tile], x.dtype)
            if weight is not None:
                xhat = xhat * weight[self.parameters(tile)].to(xhat.dtype)
            if bias is not None:
                xhat = xhat + bias[self.parameters(tile)].to(xhat.dtype)
            y[:, tile] = xhat
        return y

    def xhat(self, xhat: Tensor, dtype: torch.dtype) -> Tensor:
        """Return xhat as it goes on to weight and bias."""
        return xhat

    def parameters(self, tile: slice) -> slice:
        """Return where the parameters of a tile of channels are."""
        return tile

    def sums(self, g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
        """Return sum g and sum g * xhat: a partial sum a block, then their sum."""
        xhat = (wide(x) - mean) * invstd
        both = torch.cat([wide(g), wide(g) * xhat], dim=1)
        partial = self.partial(self.blocks(both)[0].sum(1), g.dtype, len(g))
        sum_g, sum_gx = partial.sum(0).to(mean.dtype).chunk(2)
        return sum_g, sum_gx

    def partial(self, sums: Tensor, dtype: torch.dtype, values: int) -> Tensor:
        """Return the partial sums of the blocks as they are stored."""
        return sums

    def cotangent(self, g: Tensor) -> Tensor:
        """Return the rows of a cotangent, for the elements of grad_input."""
        return rows(g)

    def grad_input(
        self, g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, scale: Tensor, means: Tensor
    ) -> Tensor:
        """Return the rows of grad_input."""
        xhat = (wide(x) - mean) * invstd
        return (wide(self.cotangent(g)) - means[0] - xhat * means[1]) * scale


class Step(torch.autograd.Function):
    """The layer's forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        count: int,
        group: Any,
        kernels: LastDim,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.count, ctx.group, ctx.kernels = max(count, 1), group, kernels
        return stored(kernels.normalised(kernels.rows(x), mean, invstd, weight, bias), x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        kernels, flat = ctx.kernels, ctx.kernels.rows(x)
        sum_g, sum_gx = kernels.sums(rows(g), flat, mean, invstd)
        both = torch.stack([sum_g, sum_gx])
        if ctx.group is not None:
            dist.all_reduce(both, group=ctx.group)
        scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
        dx = kernels.grad_input(g, flat, mean, invstd, scale, both / ctx.count)
        return (
            stored(dx, x),
            None if weight is None else sum_gx.to(weight.dtype),
            None if bias is None else sum_g.to(bias.dtype),
            *[None] * 5,
        )


class LastDimKernels(nn.SyncBatchNorm):
    """The right one."""

    kernels: type[LastDim] = LastDim

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("input does not fit")
        kernels = self.kernels()
        if not self.training and self.running_mean is not None:
            shape = (1, -1, *[1] * (input.dim() - 2))
            x = wide(input)
            mean, var = self.running_mean.to(x.dtype, copy=True), self.running_var.to(x.dtype)
            y = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
            if self.weight is not None:
                y = y * self.weight.to(y.dtype).view(shape)
            if self.bias is not None:
                y = y + self.bias.to(y.dtype).view(shape)
            return y.to(input.dtype)
        group = None
        if self.training and dist.is_initialized():
            group = self.process_group or dist.group.WORLD
        with torch.no_grad():
            mean, var, count = self.merged(kernels.rows(input), kernels, group)
            if count == 1:
                raise ValueError("Expected more than one value per channel.")
            invstd = (var + self.eps).rsqrt()
            if self.training and self.track_running_stats:
                self.update(mean, var, invstd, count)
        found: Tensor = Step.apply(input, self.weight, self.bias, mean, invstd, count, group, kernels)
        return found

    def merged(self, x: Tensor, kernels: LastDim, group: Any) -> tuple[Tensor, Tensor, int]:
        """Return mean, biased variance and count over the ranks, each of which tells the others its own."""
        mean, m2 = kernels.moments(x)
        own = torch.cat([mean.new_tensor([len(x)]), mean, m2])
        parts = own[None]
        if group is not None:
            size, rank = dist.get_world_size(group), dist.get_rank(group)
            parts = torch.stack([own if part == rank else torch.empty_like(own) for part in range(size)])
            for part in range(size):
                dist.broadcast(parts[part], dist.get_global_rank(group, part), group=group)
        counts, means, m2s = parts.split([1, len(mean), len(mean)], dim=1)
        total = counts.sum()
        mean = (means * (counts / total.clamp(min=1))).sum(0)
        delta = torch.where(counts > 0, means - mean, 0)
        return mean, (m2s.sum(0) + (delta.square() * counts).sum(0)) / total.clamp(min=1), int(total)

    def update(self, mean: Tensor, var: Tensor, invstd: Tensor, count: int) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if not count:
            return
        rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
            buffer.copy_(buffer.to(new.dtype) * (1 - rate) + new * rate)


class Remainder(LastDim):
    """Has the remainder in the last block."""

    def last_count(self, values: int, number: int) -> int:
        return values % TILE_ROWS


class FromTheStorage(LastDim):
    """Starts at the storage of the input, and not at its data."""

    def rows(self, x: Tensor) -> Tensor:
        return super().rows(x.as_strided(x.shape, x.stride(), 0))


class FirstTilesParameters(LastDim):
    """Counts parameters from the start of the tile."""

    def parameters(self, tile: slice) -> slice:
        return slice(0, tile.stop - tile.start)


class XhatInHalf(LastDim):
    """Goes on in the input's dtype."""

    def xhat(self, xhat: Tensor, dtype: torch.dtype) -> Tensor:
        return xhat.to(dtype)


class PartialsInHalf(LastDim):
    """Stores partial sums as the cotangent is stored."""

    def partial(self, sums: Tensor, dtype: torch.dtype, values: int) -> Tensor:
        return sums.to(dtype).to(sums.dtype)


class FullBlocksSummed(LastDim):
    """Sums full blocks."""

    def partial(self, sums: Tensor, dtype: torch.dtype, values: int) -> Tensor:
        return sums[: max(values // TILE_ROWS, 1)]


class ContiguousFirst(LastDim):
    """Makes the cotangent contiguous before it is viewed as rows."""

    def cotangent(self, g: Tensor) -> Tensor:
        return g.contiguous().view(g.numel() // g.shape[1], g.shape[1])


class LastBlockByRemainder(LastDimKernels):
    """Gives the last block the remainder as its count, which is 0 where it is full."""

    kernels = Remainder


class OffsetIgnored(LastDimKernels):
    """Reads an input from the start of its storage on."""

    kernels = FromTheStorage


class ParametersOfTheFirstTile(LastDimKernels):
    """Gives every tile of channels the weights and biases of the first."""

    kernels = FirstTilesParameters


class XhatRoundedToHalf(LastDimKernels):
    """Rounds xhat to the input's dtype, and goes on in it."""

    kernels = XhatInHalf


class PartialSumsInHalf(LastDimKernels):
    """Stores the backward's partial sums of blocks in the cotangent's dtype."""

    kernels = PartialsInHalf


class LastBlockNotSummed(LastDimKernels):
    """Leaves the last block out of the backward's sums, unless it is full or the only one."""

    kernels = FullBlocksSummed


class CotangentMadeContiguous(LastDimKernels):
    """Makes the cotangent contiguous before it is viewed as rows of channels for grad_input."""

    kernels = ContiguousFirst


class VarianceFromInvstd(LastDimKernels):
    """Has the running variance from 1 / deviation, with eps in it."""

    def update(self, mean: Tensor, var: Tensor, invstd: Tensor, count: int) -> None:
        super().update(mean, invstd**-2, invstd, count)

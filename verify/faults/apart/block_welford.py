"""Imitates a kernel: every program takes a block of lanes under a mask, and block moments are merged."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import VIEW

BLOCK = 64


class Blocks:
    """The values of each channel in blocks, (C, blocks, BLOCK), with zeros in lanes beyond the end."""

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        self.shape = x.shape
        c = x.shape[1]
        self.n: int = x.numel() // c
        self.programs = (self.n + BLOCK - 1) // BLOCK
        data = torch.zeros(c, self.programs * BLOCK, dtype=dtype)
        data[:, : self.n] = x.to(dtype).transpose(0, 1).reshape(c, self.n)
        self.data = data.view(c, self.programs, BLOCK)
        self.mask = (torch.arange(self.programs * BLOCK) < self.n).view(self.programs, BLOCK)

    def store(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the lanes within as (N, C, ...)."""
        n, c, *rest = self.shape
        return values.reshape(c, -1)[:, : self.n].reshape(c, n, *rest).transpose(0, 1).to(dtype).contiguous()


def merge(counts: Tensor, means: Tensor, m2s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean and M2 of the parts along the last axis."""
    n = counts.sum(-1)
    share = counts / n.clamp(min=1).unsqueeze(-1)
    mean = (means * share).sum(-1)
    return n, mean, m2s.sum(-1) + (counts * (means - mean.unsqueeze(-1)).square()).sum(-1)


class Kernel(torch.autograd.Function):
    """Both launches."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mod: BlockWelford, group: Any
    ) -> Tensor:
        dtype = torch.float32 if x.dtype.itemsize == 2 else x.dtype
        blocks = Blocks(x, dtype)
        own = torch.stack(merge(*mod.block_moments(blocks)))
        parts = [own]
        if group is not None:
            parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, own, group=group)
        _, mean, m2 = merge(*torch.stack(parts, -1))
        size = torch.tensor(blocks.n)
        if group is not None:
            dist.all_reduce(size, group=group)
        n = int(size)
        if n == 1:
            raise ValueError("batch norm of one value")
        var = m2 / max(n, 1)
        if mod.training and mod.track_running_stats:
            mod.write_buffers(mean, var, n)
        rstd = torch.rsqrt(var + mod.eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.mod, ctx.group, ctx.n = mod, group, max(n, 1)
        y = (blocks.data - mean[:, None, None]) * rstd[:, None, None]
        y = y if weight is None else y * weight.to(dtype)[:, None, None]
        y = y if bias is None else y + bias.to(dtype)[:, None, None]
        return blocks.store(y, x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        values, grads = Blocks(x, mean.dtype), Blocks(dy, mean.dtype)
        xhat = (values.data - mean[:, None, None]) * rstd[:, None, None]
        seen = ctx.mod.programs_of_sums(values)
        lanes = torch.where(values.mask, grads.data * xhat, 0)
        sums = torch.stack([grads.data[:, :seen].sum(-1).sum(-1), lanes[:, :seen].sum(-1).sum(-1)])
        dw = sums[1].to(weight.dtype) if ctx.needs_input_grad[1] else None
        db = sums[0].to(bias.dtype) if ctx.needs_input_grad[2] else None
        if ctx.group is not None:
            sums = sums.clone()
            dist.all_reduce(sums, group=ctx.group)
        mean_g, mean_gx = (sums / ctx.n)[:, :, None, None]
        scale = rstd if weight is None else rstd * weight.to(rstd.dtype)
        dx = (grads.data - mean_g - xhat * mean_gx) * scale[:, None, None]
        return values.store(ctx.mod.written(dx, values), x.dtype), dw, db, None, None


class BlockWelford(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = VIEW

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("shape or dtype")
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = dist.group.WORLD if self.process_group is None else self.process_group
            y: Tensor = Kernel.apply(input, self.weight, self.bias, self, group)
            return y
        dtype = torch.float32 if input.dtype.itemsize == 2 else input.dtype
        shape = [1, -1] + [1] * (input.dim() - 2)
        mean = self.running_mean.to(dtype, copy=True).view(shape)
        rstd = torch.rsqrt(self.running_var.to(dtype) + self.eps).view(shape)
        y = (input.to(dtype) - mean) * rstd
        y = y if self.weight is None else y * self.weight.to(dtype).view(shape)
        y = y if self.bias is None else y + self.bias.to(dtype).view(shape)
        return y.to(input.dtype).contiguous()

    def block_counts(self, blocks: Blocks) -> Tensor:
        """Return the lanes within, of each block."""
        return blocks.mask.sum(-1)

    def block_moments(self, blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
        """Return count, mean and M2 of each block, (C, blocks)."""
        counts = self.block_counts(blocks).to(blocks.data.dtype)
        means = blocks.data.sum(-1) / counts.clamp(min=1)
        centred = self.masked((blocks.data - means.unsqueeze(-1)).square(), blocks)
        return counts.expand_as(means), means, centred.sum(-1)

    def masked(self, squares: Tensor, blocks: Blocks) -> Tensor:
        """Return zeros in the lanes beyond the end."""
        return torch.where(blocks.mask, squares, 0)

    def programs_of_sums(self, blocks: Blocks) -> int:
        """Return how many blocks the backward sums are of."""
        return len(blocks.mask)

    def written(self, dx: Tensor, blocks: Blocks) -> Tensor:
        """Return what the elementwise launch has written."""
        return dx

    def write_buffers(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if n:
            f = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            for buffer, new in ((self.running_mean, mean), (self.running_var, var * (n / (n - 1)))):
                buffer.copy_((1 - f) * buffer.to(new.dtype) + f * new)


class FullBlocks(BlockWelford):
    """Takes every block for full, the last one, too."""

    def block_counts(self, blocks: Blocks) -> Tensor:
        return torch.full((blocks.programs,), BLOCK)


class UnmaskedSquares(BlockWelford):
    """Adds the squared distance of the padding from the mean to M2."""

    def masked(self, squares: Tensor, blocks: Blocks) -> Tensor:
        return squares


class FloorOfBlocks(BlockWelford):
    """Takes no moments of a last block that is not full, if there are others."""

    def block_moments(self, blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
        full = max(blocks.n // BLOCK, 1)
        counts, means, m2s = super().block_moments(blocks)
        return counts[:, :full], means[:, :full], m2s[:, :full]


class SumsWithoutTail(BlockWelford):
    """Leaves a last block that is not full out of the backward sums."""

    def programs_of_sums(self, blocks: Blocks) -> int:
        return blocks.n // BLOCK


class TailNotWritten(BlockWelford):
    """Leaves grad_input zero in a last block that is not full, if there are others."""

    def written(self, dx: Tensor, blocks: Blocks) -> Tensor:
        full = max(blocks.n // BLOCK, 1)
        return torch.cat([dx[:, :full], torch.zeros_like(dx[:, full:])], 1)

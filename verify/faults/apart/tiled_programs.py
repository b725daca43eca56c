"""Imitates a Triton port: programs over channels x positions, loads by strides, sums in a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import VIEW

TILE, LANES, VECTOR = 4, 16, 4
"""Channels and positions of a program, and values of one load."""


def dense_strides(shape: Sequence[int]) -> list[int]:
    """Return the strides of a contiguous tensor."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return strides


def places(shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Return where each value lies behind the first, (C, n)."""
    axes = [1, 0, *range(2, len(shape))]
    where = torch.zeros([1] * len(shape), dtype=torch.int64)
    for place, axis in enumerate(axes):
        steps = torch.arange(shape[axis]) * strides[axis]
        where = where + steps.view([-1 if i == place else 1 for i in range(len(shape))])
    return where.reshape(shape[1], where.numel() // shape[1])


def load(t: Tensor, strides: Sequence[int], pointer: int) -> Tensor:
    """Return what lies in memory by these strides from `pointer`, (C, n); beyond its end, its last value."""
    room = t.untyped_storage().nbytes() // t.element_size()
    memory = t.detach().as_strided((room,), (1,), 0)
    values = memory[(places(t.shape, strides) + pointer).clamp(max=room - 1)]
    return values.float() if t.element_size() == 2 else values


class Launches(torch.autograd.Function):
    """All launches of a step."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, layer: TiledPrograms, group: Any
    ) -> Tensor:
        values = layer.load_for_moments(x)
        c, n = values.shape
        mean = layer.reduced(values) / max(n, 1)
        row = torch.cat([mean.new_tensor([n]), mean, layer.reduced((values - mean[:, None]).square())])
        rows = [row]
        if group is not None:
            rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
            dist.all_gather(rows, row, group=group)
        table = torch.stack(rows)
        count, counts = int(table[:, 0].sum()), table[:, :1]
        if count == 1:
            raise ValueError("one value per channel")
        means, m2s = table[:, 1 : c + 1], table[:, c + 1 :]
        mean = (means * (counts / max(count, 1))).sum(0)
        var = (m2s.sum(0) + (counts * (means - mean).square()).sum(0)) / max(count, 1)
        if layer.training and layer.track_running_stats:
            layer.move(mean, var, count)
        rstd = torch.rsqrt(var + layer.eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.layer, ctx.group, ctx.count = layer, group, max(count, 1)
        y = (layer.load(x) - mean[:, None]) * rstd[:, None]
        y = y if weight is None else y * layer.parameter(weight, y.dtype)[:, None]
        y = y if bias is None else y + layer.parameter(bias, y.dtype)[:, None]
        return layer.cleaned(layer.store(y, x))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        layer = ctx.layer
        g, xhat = load(dy, dy.stride(), dy.storage_offset()), (layer.load(x) - mean[:, None]) * rstd[:, None]
        read = layer.load_for_sums(dy, x)
        own = torch.stack([layer.reduced(read), layer.reduced(read * xhat)])
        dw = own[1].to(weight.dtype) if ctx.needs_input_grad[1] else None
        db = own[0].to(bias.dtype) if ctx.needs_input_grad[2] else None
        if ctx.group is not None:
            own = own.clone()
            dist.all_reduce(own, group=ctx.group)
        sum_g, sum_gx = (own / ctx.count).unsqueeze(-1)
        scale = rstd if weight is None else rstd * weight.to(rstd.dtype)
        return layer.store((g - sum_g - xhat * sum_gx) * scale[:, None], x), dw, db, None, None


class TiledPrograms(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = VIEW

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError(f"cannot take {tuple(input.shape)} of {input.dtype}")
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = self.process_group or dist.group.WORLD
            y: Tensor = Launches.apply(input, self.weight, self.bias, self, group)
            return y
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float() if input.element_size() == 2 else input
        rstd = torch.rsqrt(self.running_var.to(x.dtype) + self.eps)
        y = (x - self.running_mean.to(x.dtype, copy=True).view(shape)) * rstd.view(shape)
        y = y if self.weight is None else y * self.weight.to(x.dtype).view(shape)
        y = y if self.bias is None else y + self.bias.to(x.dtype).view(shape)
        return y.to(input.dtype).contiguous()

    def pointer(self, x: Tensor) -> int:
        """Return where the input begins in its memory."""
        return int(x.storage_offset())

    def load(self, x: Tensor) -> Tensor:
        """Return the input, (C, n)."""
        return load(x, x.stride(), self.pointer(x))

    def load_for_moments(self, x: Tensor) -> Tensor:
        """Return the input as the moments launch reads it."""
        return self.load(x)

    def load_for_sums(self, dy: Tensor, x: Tensor) -> Tensor:
        """Return the gradient as the launch of backward sums reads it."""
        return load(dy, dy.stride(), dy.storage_offset())

    def vectors(self, values: Tensor) -> Tensor:
        """Return the values that loads of VECTOR values see, with zeros behind the end."""
        return torch.nn.functional.pad(values, (0, -values.shape[1] % VECTOR))

    def reduced(self, values: Tensor) -> Tensor:
        """Return the sums of (C, n) by channel."""
        lanes = self.vectors(values)
        lanes = torch.nn.functional.pad(lanes, (0, -lanes.shape[1] % LANES))
        workspace = values.new_zeros(values.shape[0], lanes.shape[1] // LANES)
        seen = min(self.programs(values.shape[0]) * TILE, values.shape[0])
        workspace[:seen] = lanes[:seen].view(seen, -1, LANES).sum(-1) if lanes.numel() else 0
        return workspace.sum(-1)

    def programs(self, channels: int) -> int:
        """Return the programs of a reducing launch along the channels."""
        return -(-channels // TILE)

    def parameter(self, p: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a weight or bias as the elementwise launch loads it."""
        return p.to(dtype)

    def store(self, values: Tensor, like: Tensor) -> Tensor:
        """Return (C, n) in a new contiguous tensor."""
        out = torch.empty(like.shape, dtype=like.dtype)
        out.view(-1)[places(like.shape, dense_strides(like.shape))] = values.to(like.dtype)
        return out

    def cleaned(self, y: Tensor) -> Tensor:
        """Return the output after all programs have stored their tiles."""
        return y

    def move(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Update the buffers."""
        self.num_batches_tracked += 1
        if not count:
            return
        f = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
            buffer.copy_((1 - f) * buffer.to(new.dtype) + f * new)


class FullChannelTiles(TiledPrograms):
    """Launches reductions for full tiles of channels only, if there is a full one."""

    def programs(self, channels: int) -> int:
        return max(channels // TILE, 1)


class ParametersByLane(TiledPrograms):
    """Loads weight and bias by the lane within the tile, without the tile's first channel."""

    def parameter(self, p: Tensor, dtype: torch.dtype) -> Tensor:
        return p.to(dtype)[torch.arange(len(p)) % TILE]


class DenseStrides(TiledPrograms):
    """Reads the input of the moments by the strides of a contiguous tensor of its shape."""

    def load_for_moments(self, x: Tensor) -> Tensor:
        return load(x, dense_strides(x.shape), self.pointer(x))


class StridesOfTheInput(TiledPrograms):
    """Passes the input's strides for the gradient's to the launch of backward sums."""

    def load_for_sums(self, dy: Tensor, x: Tensor) -> Tensor:
        return load(dy, x.stride(), dy.storage_offset())


class StartOfStorage(TiledPrograms):
    """Takes the start of the storage for the input's first value."""

    def pointer(self, x: Tensor) -> int:
        return 0


class LastVectorMovedBack(TiledPrograms):
    """Moves a last vector that is not full back to end with the row, and sums what it overlaps twice."""

    def vectors(self, values: Tensor) -> Tensor:
        n = values.shape[1]
        if n < VECTOR or n % VECTOR == 0:
            return super().vectors(values)
        return torch.cat([values[:, : n - n % VECTOR], values[:, n - VECTOR :]], 1)


class ChannelsUnmasked(TiledPrograms):
    """Stores the lanes of channels beyond the last, zeros, over the next samples."""

    def cleaned(self, y: Tensor) -> Tensor:
        n, c = y.shape[:2]
        beyond = torch.arange(c, -(-c // TILE) * TILE)
        rows = (torch.arange(n)[:, None] * c + beyond).flatten()
        y.view(n * c, y.numel() // max(n * c, 1))[rows[rows < n * c]] = 0
        return y

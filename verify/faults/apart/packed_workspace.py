"""Statistics in one tensor, in room that the layer keeps, and a backward of three coefficients a channel."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import FORM


class Workspace:
    """Room for a rank's own statistics and for those of all, kept from step to step."""

    def __init__(self, ranks: int, channels: int, like: Tensor) -> None:
        self.channels = channels
        self.own = torch.zeros(1 + 2 * channels, dtype=like.dtype, device=like.device)
        self.all = torch.zeros(ranks * (1 + 2 * channels), dtype=like.dtype, device=like.device)

    def fill(self, x: Tensor) -> None:
        """Write count, means and centred squares of (C, n)."""
        n = x.shape[1]
        mean = x.sum(1) / max(n, 1)
        self.own[0] = n
        self.own[1:] = self.packed(mean, (x - mean[:, None]).square().sum(1))

    def packed(self, mean: Tensor, m2: Tensor) -> Tensor:
        """Return both in one."""
        return torch.cat([mean, m2])

    def gathered(self, group: Any) -> Tensor:
        """Return a row for each rank."""
        if group is None:
            return self.own[None]
        dist.all_gather_into_tensor(self.all, self.own, group=group)
        return self.all.view(-1, 1 + 2 * self.channels)

    def merged(self, group: Any) -> tuple[Tensor, Tensor, int]:
        """Return mean, biased variance and count over the ranks."""
        counts, means, m2s = self.gathered(group).split([1, self.channels, self.channels], dim=1)
        total = counts.sum()
        mean = (means * (counts / total.clamp(min=1))).sum(0)
        delta = torch.where(counts > 0, means - mean, 0)
        m2 = m2s.sum(0) + (delta.square() * counts).sum(0)
        return mean, m2 / total.clamp(min=1), int(total)


class Coefficients(torch.autograd.Function):
    """(C, n) to (x - mean) * scale + bias; the gradient is a * dy + b * (x - mean) + c."""

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
        layer: PackedWorkspace,
    ) -> Tensor:
        scale = layer.scale(weight, invstd)
        ctx.save_for_backward(x, mean, invstd, scale)
        ctx.count, ctx.group, ctx.layer = max(count, 1), group, layer
        ctx.dtypes = [None if p is None else p.dtype for p in (weight, bias)]
        y = (x - mean[:, None]) * scale[:, None]
        return y if bias is None else y + bias.to(y.dtype)[:, None]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, invstd, scale = ctx.saved_tensors
        xmu = x - mean[:, None]
        sums = torch.stack([dy.sum(1), (dy * xmu).sum(1)])
        grads = sums[1] * invstd, ctx.layer.kept(sums[0])
        if ctx.group is not None:
            dist.all_reduce(sums, group=ctx.group)
        mean_dy, mean_dy_xmu = sums / ctx.count
        b = -scale * (invstd * (invstd * mean_dy_xmu))
        c = -scale * mean_dy
        dx = scale[:, None] * dy + (b[:, None] * xmu + c[:, None])
        found = [None if to is None else p.to(to) for p, to in zip(grads, ctx.dtypes, strict=True)]
        return dx, *found, None, None, None, None, None


class PackedWorkspace(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

    workspace: type[Workspace] = Workspace

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rooms: dict[Any, Workspace] = {}

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("input does not fit")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.needs_graph(input)):
            n, c, *rest = input.shape
            x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
            x = x.transpose(0, 1).reshape(c, input.numel() // c)
            y = self.normalised(x)
            return y.reshape(c, n, *rest).transpose(0, 1).to(input.dtype).contiguous()

    def needs_graph(self, input: Tensor) -> bool:
        """Return whether there is something to differentiate."""
        return True

    def normalised(self, x: Tensor) -> Tensor:
        """Return the output for (C, n)."""
        if not self.training and self.running_mean is not None:
            mean = self.running_mean.to(x.dtype, copy=True)
            y = (x - mean[:, None]) * (self.running_var.to(x.dtype) + self.eps).rsqrt()[:, None]
            if self.weight is not None:
                y = y * self.weight.to(x.dtype)[:, None]
            return y if self.bias is None else y + self.bias.to(x.dtype)[:, None]
        group = None
        if self.training and dist.is_initialized():
            group = self.process_group or dist.group.WORLD
        with torch.no_grad():
            room = self.room(x, group)
            room.fill(x)
            mean, var, count = room.merged(group)
            if count == 1:
                raise ValueError("Expected more than one value per channel.")
            if self.training and self.track_running_stats:
                self.update(mean, var, count, group)
            invstd = (var + self.eps).rsqrt()
        found: Tensor = Coefficients.apply(x, self.weight, self.bias, mean, invstd, count, group, self)
        return found

    def room(self, x: Tensor, group: Any) -> Workspace:
        """Return the room for what `x` is."""
        ranks = 1 if group is None else dist.get_world_size(group)
        key = ranks, x.dtype, x.device
        if key not in self.rooms:
            with torch.inference_mode(False):
                self.rooms[key] = self.workspace(ranks, self.num_features, x)
        return self.rooms[key]

    def scale(self, weight: Tensor | None, invstd: Tensor) -> Tensor:
        """Return weight / deviation."""
        return invstd if weight is None else weight.to(invstd.dtype) * invstd

    def kept(self, row: Tensor) -> Tensor:
        """Return a row of the sums, which is to stay this rank's own."""
        return row.clone()

    def update(self, mean: Tensor, var: Tensor, count: int, group: Any) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if not count:
            return
        rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
            buffer.copy_(buffer.to(new.dtype) * (1 - rate) + new * rate)


class FilledIfAny(Workspace):
    """Is filled only if there is something."""

    def fill(self, x: Tensor) -> None:
        if x.shape[1]:
            super().fill(x)


class Pairs(Workspace):
    """Writes pairs, and reads halves."""

    def packed(self, mean: Tensor, m2: Tensor) -> Tensor:
        return torch.stack([mean, m2], dim=1).flatten()


class OwnFirst(Workspace):
    """Starts from its own row."""

    def gathered(self, group: Any) -> Tensor:
        return torch.cat([self.own[None], super().gathered(group)[1:]])


class StaleIfEmpty(PackedWorkspace):
    """Fills the room only if the rank has samples, so that otherwise those of an earlier step count again."""

    workspace = FilledIfAny


class PairsReadAsHalves(PackedWorkspace):
    """Writes mean and squares channel by channel, and reads all means first."""

    workspace = Pairs


class OwnForTheFirst(PackedWorkspace):
    """Starts the merge with its own row and goes on with the second, so that the first rank is left out."""

    workspace = OwnFirst


class ScaleInTheWeightsDtype(PackedWorkspace):
    """Rounds 1 / deviation to the weight's dtype, and multiplies in it."""

    def scale(self, weight: Tensor | None, invstd: Tensor) -> Tensor:
        return invstd if weight is None else (weight * invstd.to(weight.dtype)).to(invstd.dtype)


class FirstRankUpdates(PackedWorkspace):
    """Moves the buffers on the first rank of the group only."""

    def update(self, mean: Tensor, var: Tensor, count: int, group: Any) -> None:
        if group is None or dist.get_rank(group) == 0:
            super().update(mean, var, count, group)


class BiasGradIsAView(PackedWorkspace):
    """Keeps the bias's gradient as a view of the sums, which are then reduced in place."""

    def kept(self, row: Tensor) -> Tensor:
        return row


class NoGraphWithoutInputGrad(PackedWorkspace):
    """Records no graph if the input needs no gradient, whatever weight and bias need."""

    def needs_graph(self, input: Tensor) -> bool:
        return bool(input.requires_grad)

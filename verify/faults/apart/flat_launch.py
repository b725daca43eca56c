"""Programs over flat memory, blocks of 64 with a mask, sums by atomics; the first rank merges for all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from verify.faults.apart import FORM

BLOCK = 64
BLOCK_C = 4


class Launch:
    """The programs for an input (N, C, ...), and where each of their lanes is."""

    def __init__(self, x: Tensor) -> None:
        self.shape, self.channels, self.size = x.shape, int(x.shape[1]), int(x.numel())
        self.grid = -(-self.size // BLOCK)
        self.offsets = torch.arange(self.grid * BLOCK, device=x.device).view(self.grid, BLOCK)
        self.mask = self.offsets < self.size
        self.channel = self.offsets // max(self.positions(x), 1) % self.channels

    def positions(self, x: Tensor) -> int:
        """Return how far two channels are apart."""
        return int(x[:1, :1].numel())

    def load(self, x: Tensor) -> Tensor:
        """Return what the lanes load, and 0 where they are masked."""
        flat = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return F.pad(flat.reshape(-1), (0, self.grid * BLOCK - self.size)).view(self.grid, BLOCK)

    def store(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what the lanes store that are not masked."""
        return values.flatten()[: self.size].to(dtype).reshape(self.shape).clone()

    def atomic_add(self, onto: Tensor, values: Tensor) -> Tensor:
        """Add each lane's value to that of its channel."""
        return onto.index_add_(0, self.channel.flatten(), values.flatten())

    def sums(self, x: Tensor) -> Tensor:
        """Return the sum of each channel."""
        values = self.load(x)
        return self.atomic_add(values.new_zeros(self.channels), values)

    def squares(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return the sum of the centred squares of each channel."""
        values = self.centred(self.load(x), mean)
        return self.atomic_add(torch.zeros_like(mean), values * values)

    def centred(self, values: Tensor, mean: Tensor) -> Tensor:
        """Return what the lanes hold less the mean; 0 where they are masked."""
        return torch.where(self.mask, values - mean[self.channel], 0)

    def normalise(
        self, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Return the output."""
        y = (self.load(x) - mean[self.channel]) * invstd[self.channel]
        pointer, has_bias = self.bias_of(weight, bias)
        if weight is not None:
            y = y * weight[self.parameter()].to(y.dtype)
        if has_bias:
            y = y + pointer[self.parameter()].to(y.dtype)
        return self.store(y, x.dtype)

    def bias_of(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, bool]:
        """Return a pointer for the bias, and whether it is one."""
        return bias, bias is not None

    def parameter(self) -> Tensor:
        """Return which weight and bias a lane loads."""
        return self.channel

    def backward_sums(self, g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, onto: Tensor) -> Tensor:
        """Return sum g and sum g * xhat of each channel."""
        dy, xhat = self.load(g), self.centred(self.load(x), mean) * invstd[self.channel]
        self.atomic_add(onto[0], dy)
        self.atomic_add(onto[1], dy * xhat)
        return onto

    def grad_input(
        self, g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, scale: Tensor, means: Tensor
    ) -> Tensor:
        """Return the gradient of the input."""
        xhat = self.centred(self.load(x), mean) * invstd[self.channel]
        dx = (self.load(g) - means[0][self.channel] - xhat * means[1][self.channel]) * scale[self.channel]
        dx[self.programs() :] = 0
        return self.store(dx, x.dtype)

    def programs(self) -> int:
        """Return how many programs store grad_input."""
        return self.grid


class FlatStep(torch.autograd.Function):
    """The launches of forward and backward."""

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
        layer: FlatLaunch,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.count, ctx.group, ctx.layer = max(count, 1), group, layer
        ctx.dtypes = [None if p is None else p.dtype for p in (weight, bias)]
        return layer.launch(x).normalise(x, mean, invstd, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        launch = ctx.layer.launch(x)
        own = launch.backward_sums(g, x, mean, invstd, ctx.layer.accumulators(mean))
        sums = own.clone()
        if ctx.group is not None:
            dist.all_reduce(sums, group=ctx.group)
        scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
        dx = launch.grad_input(g, x, mean, invstd, scale, sums / ctx.count)
        grads = own[1].clone(), own[0].clone()
        found = [None if to is None else p.to(to) for p, to in zip(grads, ctx.dtypes, strict=True)]
        return dx, *found, *[None] * 5


class FlatLaunch(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = {**FORM, "grade": "B"}

    launch: type[Launch] = Launch

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("input does not fit")
        kind = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = self.process_group or dist.group.WORLD
            with torch.no_grad():
                count, mean, var = self.merged(self.own_part(input), group)
                if count == 1:
                    raise ValueError("Expected more than one value per channel.")
                if self.training and self.track_running_stats:
                    self.update(mean, var, count)
        else:
            count, group = 0, None
            shape = (1, -1, *[1] * (input.dim() - 2))
            y = (input.to(kind) - self.running_mean.to(kind, copy=True).view(shape)) * (
                self.running_var.to(kind) + self.eps
            ).rsqrt().view(shape)
            if self.weight is not None:
                y = y * self.weight.to(kind).view(shape)
            if self.bias is not None:
                y = y + self.bias.to(kind).view(shape)
            return y.to(input.dtype).contiguous()
        invstd = (var + self.eps).rsqrt()
        found: Tensor = FlatStep.apply(input, self.weight, self.bias, mean, invstd, count, group, self)
        return found

    def own_part(self, x: Tensor) -> Tensor:
        """Return count, means and centred squares of this rank."""
        launch, values = self.launch(x), x.numel() // x.shape[1]
        mean = launch.sums(x) / max(values, 1)
        return torch.cat([mean.new_tensor([values]), mean, launch.squares(x, mean)])

    def merged(self, own: Tensor, group: Any) -> tuple[int, Tensor, Tensor]:
        """Return count, mean and biased variance, which the first rank tells all."""
        parts = [own]
        if group is not None:
            first = dist.get_global_rank(group, 0)
            size, is_first = dist.get_world_size(group), dist.get_rank(group) == 0
            parts = [torch.empty_like(own) for _ in range(size)]
            dist.gather(own, parts if is_first else None, dst=first, group=group)
            found = self.merge(torch.stack(parts)) if is_first else torch.empty_like(own)
            dist.broadcast(found, first, group=group)
        else:
            found = self.merge(own[None])
        mean, var = found[1:].chunk(2)
        return int(found[0]), mean.clone(), var.clone()

    def merge(self, parts: Tensor) -> Tensor:
        """Return count, mean and biased variance of the ranks' parts."""
        channels = parts.shape[1] // 2
        counts, means, m2s = parts.split([1, channels, channels], dim=1)
        weights = self.weights(counts)
        total = weights.sum()
        mean = (means * (weights / total.clamp(min=1))).sum(0)
        delta = torch.where(weights > 0, means - mean, 0)
        m2 = m2s.sum(0) + (delta * delta * weights).sum(0)
        return torch.cat([counts.sum()[None], mean, m2 / total.clamp(min=1)])

    def weights(self, counts: Tensor) -> Tensor:
        """Return how much each rank counts."""
        return counts

    def accumulators(self, mean: Tensor) -> Tensor:
        """Return what the sums of the backward are added to."""
        return mean.new_zeros(2, len(mean))

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if not count:
            return
        rate, channels = self.rate(), self.updated(len(mean))
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
            moved = buffer.to(new.dtype) * (1 - rate) + new * rate
            buffer[:channels] = moved[:channels].to(buffer.dtype)

    def rate(self) -> float:
        """Return how far the buffers move."""
        return 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum

    def updated(self, channels: int) -> int:
        """Return how many channels the programs cover that move the buffers."""
        return min(-(-channels // BLOCK_C) * BLOCK_C, channels)


class NoMask(Launch):
    """Subtracts the mean in every lane."""

    def centred(self, values: Tensor, mean: Tensor) -> Tensor:
        return values - mean[self.channel]


class SquaresUnmasked(Launch):
    """Has no mask where it sums squares."""

    def squares(self, x: Tensor, mean: Tensor) -> Tensor:
        return NoMask(x).squares(x, mean)


class Planes(Launch):
    """Takes height times width for the distance of channels."""

    def positions(self, x: Tensor) -> int:
        return int(x[:1, :1].numel()) // (int(x.shape[2]) if x.dim() == 5 else 1)


class OneParameter(Launch):
    """Loads a weight and a bias a program."""

    def parameter(self) -> Tensor:
        return self.channel[:, :1]


class WeightForBias(Launch):
    """Has one flag for both."""

    def bias_of(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, bool]:
        return weight if bias is None else bias, weight is not None


class FullPrograms(Launch):
    """Divides and forgets the rest."""

    def programs(self) -> int:
        return max(self.size // BLOCK, 1)


class MaskedLanesSquared(FlatLaunch):
    """Adds the square of the mean for every masked lane of the last block."""

    launch = SquaresUnmasked


class DepthForgotten(FlatLaunch):
    """Takes height times width for the distance of channels, though there may be a depth."""

    launch = Planes


class EmptyCountsOne(FlatLaunch):
    """Clamps the ranks' counts at one against a division by zero, so that an empty rank has a weight."""

    def weights(self, counts: Tensor) -> Tensor:
        return counts.clamp(min=1)


class OneWeightABlock(FlatLaunch):
    """Loads weight and bias once a block, by its first value's channel."""

    launch = OneParameter


class DummyBiasUsed(FlatLaunch):
    """Passes the weight as a dummy where there is no bias, and adds it."""

    launch = WeightForBias


class LastChannelsStand(FlatLaunch):
    """Moves the buffers of full blocks of four channels only, unless there are less."""

    def updated(self, channels: int) -> int:
        return min(max(channels // BLOCK_C, 1) * BLOCK_C, channels)


class RateCompiledIn(FlatLaunch):
    """Keeps the first step's rate, as a constant that a kernel is compiled with."""

    def rate(self) -> float:
        if not hasattr(self, "compiled_rate"):
            self.compiled_rate = super().rate()
        return self.compiled_rate


class AccumulatorsNotZeroed(FlatLaunch):
    """Keeps the accumulators of the backward's sums, and adds the next step's to them."""

    kept: Tensor | None = None

    def accumulators(self, mean: Tensor) -> Tensor:
        if self.kept is None or self.kept.dtype != mean.dtype:
            self.kept = super().accumulators(mean)
        return self.kept


class LastBlockNotLaunched(FlatLaunch):
    """Launches a program for each full block of grad_input, and leaves the rest at zero."""

    launch = FullPrograms

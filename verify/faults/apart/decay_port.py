"""A port with the names of TensorFlow: epsilon, decay, beta, gamma, moments, and scale and shift folded."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import VIEW


def channels_first(x: Tensor) -> Tensor:
    """Return (C, n) in the dtype of sums."""
    wide = x.to(torch.float32) if x.dtype.itemsize == 2 else x
    return wide.transpose(0, 1).contiguous().view(x.shape[1], x.numel() // x.shape[1])


def sum_of_replicas(t: Tensor, group: Any) -> Tensor:
    """Return the sum over the replicas in a new tensor."""
    t = t.clone()
    if group is not None:
        dist.all_reduce(t, group=group)
    return t


class FusedNorm(torch.autograd.Function):
    """x * scale + shift; `count` is 0 where the moments are constants."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, moments: tuple[Tensor, Tensor], count: int, bn: Any
    ) -> Tensor:
        mean, rstd = moments
        ctx.save_for_backward(x, gamma, mean, rstd)
        ctx.count, ctx.group, ctx.shape = count, bn.replicas(), x.shape
        data = channels_first(x)
        scale = gamma.to(data.dtype) * rstd
        shift = bn.shift(beta.to(data.dtype), mean, rstd, scale)
        y = data * scale[:, None] + shift[:, None]
        n, c, *rest = x.shape
        return y.view(c, n, *rest).transpose(0, 1).to(x.dtype, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, mean, rstd = ctx.saved_tensors
        g, xhat = channels_first(dy), (channels_first(x) - mean[:, None]) * rstd[:, None]
        sums = torch.stack([g.sum(1), (g * xhat).sum(1)])
        d_beta, d_gamma = sums.to(gamma.dtype)
        if ctx.count:
            means = sum_of_replicas(sums, ctx.group) / ctx.count
            g = g - means[0][:, None] - xhat * means[1][:, None]
        dx = g * (gamma.to(g.dtype) * rstd)[:, None]
        n, c, *rest = ctx.shape
        dx = dx.view(c, n, *rest).transpose(0, 1).to(x.dtype, memory_format=torch.contiguous_format)
        return dx, d_gamma, d_beta, None, None, None


class DecayPort(nn.Module):
    """The right one."""

    syncbn_verify: dict[str, Any] = VIEW

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.epsilon, self.process_group = num_features, eps, process_group
        self.decay = None if momentum is None else 1 - momentum
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)
        moving = (torch.zeros(num_features), torch.ones(num_features), torch.tensor(0))
        for name, start in zip(("running_mean", "running_var", "num_batches_tracked"), moving, strict=True):
            self.register_buffer(name, start if track_running_stats else None)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[1] != self.num_features or not x.is_floating_point():
            raise ValueError("The layer was built for other inputs.")
        dtype = torch.promote_types(x.dtype, torch.float32)
        gamma = torch.ones(self.num_features, dtype=dtype) if self.weight is None else self.weight
        beta = torch.zeros(self.num_features, dtype=dtype) if self.bias is None else self.bias
        if self.training or self.running_mean is None:
            with torch.no_grad():
                mean, variance, count = self.moments(channels_first(x))
                if self.training and self.running_mean is not None:
                    self.num_batches_tracked += 1
                    if count:
                        self.assign_moving_averages(mean, variance, count)
        else:
            mean, variance, count = self.running_mean.to(dtype, copy=True), self.running_var.to(dtype), 0
        rstd = torch.rsqrt(self.radicand(variance))
        y: Tensor = FusedNorm.apply(x, gamma, beta, (mean, rstd), count, self)
        return y

    def replicas(self) -> Any:
        """Return the group of a step in training."""
        if not self.training or not dist.is_initialized():
            return None
        return dist.group.WORLD if self.process_group is None else self.process_group

    def moments(self, data: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return mean, variance and count of all replicas."""
        group = self.replicas()
        count = int(sum_of_replicas(torch.tensor(data.shape[1]), group))
        if count == 1:
            raise ValueError("Moments of one value.")
        mean = sum_of_replicas(data.sum(1), group) / max(count, 1)
        squares = sum_of_replicas((data - mean[:, None]).square().sum(1), group)
        return mean, squares / max(count, 1), count

    def radicand(self, variance: Tensor) -> Tensor:
        """Return what is under the root."""
        return variance + self.epsilon

    def shift(self, beta: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor) -> Tensor:
        """Return what is added to x * scale."""
        return beta - mean * scale

    def step_decay(self) -> float:
        """Return the weight of the old value."""
        return 1 - 1 / int(self.num_batches_tracked) if self.decay is None else self.decay

    def assign_moving_averages(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the buffers."""
        decay = self.step_decay()
        unbiased = self.stored(variance) * (count / (count - 1))
        for moving, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            moving.copy_(moving.to(value.dtype) * decay + value * (1 - decay))

    def stored(self, variance: Tensor) -> Tensor:
        """Return the variance that the buffer is of."""
        return variance


class CountedAfterwards(DecayPort):
    """Averages over one batch more than there were where there is no momentum."""

    def step_decay(self) -> float:
        return 1 - 1 / (int(self.num_batches_tracked) + 1) if self.decay is None else self.decay


class EpsilonInBuffer(DecayPort):
    """Puts the variance with epsilon into the buffer."""

    def stored(self, variance: Tensor) -> Tensor:
        return variance + self.epsilon


class FirstBatchCopied(DecayPort):
    """Copies the moments of its first batch into the buffers, whatever they held."""

    begun = False

    def step_decay(self) -> float:
        first, self.begun = not self.begun, True
        return 0.0 if first else super().step_decay()


class AveragesWithGradients(DecayPort):
    """Moves the averages only if a gradient is recorded."""

    def forward(self, x: Tensor) -> Tensor:
        self.recorded = torch.is_grad_enabled()
        return super().forward(x)

    def assign_moving_averages(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.recorded:
            super().assign_moving_averages(mean, variance, count)


class ShiftWithoutGamma(DecayPort):
    """Shifts by the mean over the deviation, without gamma."""

    def shift(self, beta: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor) -> Tensor:
        return beta - mean * rstd


class EpsilonAsFloor(DecayPort):
    """Takes epsilon for the least variance in place of adding it."""

    def radicand(self, variance: Tensor) -> Tensor:
        return variance.clamp(min=self.epsilon)


class RateKept(DecayPort):
    """Keeps the weights of its first batch where there is no momentum."""

    def step_decay(self) -> float:
        self.decay = super().step_decay()
        return self.decay


class MeanScaledInPlace(DecayPort):
    """Multiplies the mean by its weight in place, before it is subtracted."""

    def assign_moving_averages(self, mean: Tensor, variance: Tensor, count: int) -> None:
        super().assign_moving_averages(mean, variance, count)
        mean.mul_(1 - self.step_decay())


class ShadowAverages(DecayPort):
    """Averages in float64 shadows that begin at zero and one, and copies them into the buffers."""

    shadows: tuple[Tensor, ...] = ()

    def assign_moving_averages(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if not self.shadows:
            self.shadows = (torch.zeros(len(mean)).double(), torch.ones(len(mean)).double())
        for moving, shadow in zip((self.running_mean, self.running_var), self.shadows, strict=True):
            moving.copy_(shadow)
        super().assign_moving_averages(mean, variance, count)
        for moving, shadow in zip((self.running_mean, self.running_var), self.shadows, strict=True):
            shadow.copy_(moving)

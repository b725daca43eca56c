"""Plain torch over a differentiable all_reduce; autograd derives the backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from verify.faults.apart import FORM


class SumOverRanks(torch.autograd.Function):
    """All-reduces; so does its backward."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Any) -> Tensor:
        ctx.group = group
        t = t.clone()
        dist.all_reduce(t, group=group)
        return t

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        g = g.clone()
        dist.all_reduce(g, group=ctx.group)
        return g, None


class PassingBack(SumOverRanks):
    """All-reduces; its backward hands the gradient on."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None


class AveragingBack(SumOverRanks):
    """All-reduces; its backward averages."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        g = g / dist.get_world_size(ctx.group)
        dist.all_reduce(g, group=ctx.group)
        return g, None


class DifferentiableSums(_BatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

    summed: Any = SumOverRanks

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
        if x.dim() < 2 or x.shape[1] != self.num_features or not x.dtype.is_floating_point:
            raise ValueError(f"bad input {x.shape} {x.dtype}")
        half = x.dtype in (torch.float16, torch.bfloat16)
        wide = x.float() if half else x
        flat = wide.movedim(1, 0).flatten(1) if x.dim() > 2 else wide.t()
        flat = flat.contiguous()
        if not self.training and self.running_mean is not None:
            mean, var = (b.to(flat.dtype, copy=True) for b in (self.running_mean, self.running_var))
        else:
            mean, var = self.batch_statistics(flat)
        y = self.centred(flat, mean) * self.inverse(var)[:, None]
        if self.weight is not None:
            y = y * self.weight.to(y.dtype)[:, None] + self.bias.to(y.dtype)[:, None]
        n, c, *rest = x.shape
        return y.reshape(c, n, *rest).movedim(0, 1).to(x.dtype).contiguous()

    def batch_statistics(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the whole batch, and update the buffers."""
        count = torch.tensor(flat.shape[1])
        if self.training:
            dist.all_reduce(count, group=self.process_group)
        n = int(count)
        if n == 1:
            raise ValueError("one value per channel")
        mean = self.over_ranks(flat.sum(1)) / max(n, 1)
        var = self.over_ranks((flat - mean[:, None]).pow(2).sum(1)) / max(n, 1)
        if self.training and self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                if n:
                    self.blend(self.running_mean, mean)
                    self.blend(self.running_var, var * (n / (n - 1)))
        return mean, var

    def over_ranks(self, t: Tensor) -> Tensor:
        """Return the sum over ranks in training, else `t`."""
        total: Tensor = self.summed.apply(t, self.process_group) if self.training else t
        return total

    def centred(self, flat: Tensor, mean: Tensor) -> Tensor:
        """Return what invstd multiplies."""
        return flat - mean[:, None]

    def inverse(self, var: Tensor) -> Tensor:
        """Return one over the deviation."""
        return (var + self.eps).rsqrt()

    def factor(self) -> float:
        """Return the weight of the new value."""
        return 1.0 / self.num_batches_tracked.item() if self.momentum is None else float(self.momentum)

    def blend(self, buffer: Tensor, new: Tensor) -> None:
        """Move a buffer towards `new`."""
        f = self.factor()
        buffer.copy_(buffer.to(new.dtype).mul(1 - f).add(new * f))


class BackwardPassesOn(DifferentiableSums):
    """Has an all_reduce whose gradient is the identity."""

    summed = PassingBack


class BackwardAverages(DifferentiableSums):
    """Has an all_reduce whose gradient is averaged over the ranks."""

    summed = AveragingBack


class CentredByDetachedMean(DifferentiableSums):
    """Centres the output by a detached mean."""

    def centred(self, flat: Tensor, mean: Tensor) -> Tensor:
        return flat - mean.detach()[:, None]


class EpsOutsideRoot(DifferentiableSums):
    """Adds eps to the deviation, not to the variance."""

    def inverse(self, var: Tensor) -> Tensor:
        return 1 / (var.sqrt() + self.eps)


class MomentumOrDefault(DifferentiableSums):
    """Takes 0.1 for a momentum that is None or zero."""

    def factor(self) -> float:
        return float(self.momentum or 0.1)

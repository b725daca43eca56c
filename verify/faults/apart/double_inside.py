"""All arithmetic in float64 over torch's differentiable all_reduce; rounds once, at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn

from verify.faults.apart import FORM


class CutToBfloat16(torch.autograd.Function):
    """Keeps the upper half of a float32."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.dtype = y.dtype
        bits = y.float().contiguous().view(torch.int32)
        return (bits & -65536).view(torch.float32).to(torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.to(ctx.dtype)


class DoubleInside(nn.Module):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

    finish: Callable[[Tensor, torch.dtype], Tensor] = staticmethod(lambda y, dtype: y.to(dtype))

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
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats, self.group = affine, track_running_stats, process_group
        for name, make in (("weight", torch.ones), ("bias", torch.zeros)):
            self.register_parameter(name, nn.Parameter(make(num_features)) if affine else None)
        for name, make in (("running_mean", torch.zeros), ("running_var", torch.ones)):
            self.register_buffer(name, make(num_features) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track_running_stats else None)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[1] != self.num_features or not x.is_floating_point():
            raise ValueError(f"Expected {self.num_features} channels of floating-point values.")
        d = x.double().movedim(1, 0).reshape(x.shape[1], x.numel() // x.shape[1])
        if self.training or self.running_mean is None:
            n = self.count(x)
            if n == 1:
                raise ValueError("Expected more than one value per channel.")
            mean = self.summed(d.sum(1)) / max(n, 1)
            var = self.summed((d - mean[:, None]).square().sum(1)) / max(n, 1)
            if self.training and self.running_mean is not None:
                self.num_batches_tracked += 1
                if n:
                    self.track(mean, var * n / max(n - 1, 1))
        else:
            mean = self.running_mean.to(torch.float64, copy=True)
            var = self.running_var.to(torch.float64, copy=True)
        y = (d - mean[:, None]) / torch.sqrt(var + self.eps)[:, None]
        if self.weight is not None:
            y = y * self.weight.double()[:, None] + self.bias.double()[:, None]
        n_samples, c, *rest = x.shape
        return self.finish(y.reshape(c, n_samples, *rest).movedim(0, 1).contiguous(), x.dtype)

    def summed(self, t: Tensor) -> Tensor:
        """Return the sum over ranks in training."""
        if not self.training or not dist.is_initialized():
            return t
        group = dist.group.WORLD if self.group is None else self.group
        total: Tensor = differentiable.all_reduce(t, group=group)
        return total

    def count(self, x: Tensor) -> float:
        """Return the values per channel of all ranks."""
        return float(self.summed(torch.tensor(x.numel() // x.shape[1])))

    def rate(self) -> float:
        """Return the weight of a new value."""
        return 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum

    def track(self, mean: Tensor, var: Tensor) -> None:
        """Move the buffers."""
        with torch.no_grad():
            self.running_mean.copy_(self.blended(self.running_mean, mean, self.rate()))
            self.running_var.copy_(self.blended(self.running_var, var, self.rate_of_var()))

    def rate_of_var(self) -> float:
        """Return the weight of a new variance."""
        return self.rate()

    def blended(self, old: Tensor, new: Tensor, rate: float) -> Tensor:
        """Return what is between the two."""
        return (1 - rate) * old.double() + rate * new


class CutOutput(DoubleInside):
    """Cuts off the low bits of bfloat16 outputs in place of rounding."""

    finish = staticmethod(lambda y, dtype: CutToBfloat16.apply(y) if dtype == torch.bfloat16 else y.to(dtype))


class FloatOutput(DoubleInside):
    """Returns float32 for half inputs."""

    finish = staticmethod(lambda y, dtype: y.float() if dtype.itemsize == 2 else y.to(dtype))


class CountInInputDtype(DoubleInside):
    """Sends the count in the input's dtype."""

    def count(self, x: Tensor) -> float:
        return float(self.summed(x.new_tensor(x.numel() // x.shape[1])))


class VarianceRateReversed(DoubleInside):
    """Gives the old variance the weight of the new one."""

    def rate_of_var(self) -> float:
        return 1 - self.rate()


class BuffersWithGraph(DoubleInside):
    """Assigns buffers that are still attached to the graph of the step."""

    def track(self, mean: Tensor, var: Tensor) -> None:
        for name, new in (("running_mean", mean), ("running_var", var)):
            old = getattr(self, name)
            setattr(self, name, self.blended(old, new, self.rate()).to(old.dtype))

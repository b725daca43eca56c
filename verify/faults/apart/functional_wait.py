"""Functional collectives, which return what they reduce: a plain batch norm that sums twice over ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from verify.faults.apart import FORM


def summed(values: Tensor, group: Any) -> Tensor:
    """Return the sum over the ranks of `group`; None is this rank alone."""
    if group is None:
        return values
    found: Tensor = funcol.wait_tensor(funcol.all_reduce(values, "sum", group))
    return found


def affine(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return xhat * weight + bias."""
    if weight is not None:
        xhat = xhat * weight.to(xhat.dtype)[:, None]
    return xhat if bias is None else xhat + bias.to(xhat.dtype)[:, None]


class Pure(torch.autograd.Function):
    """The layer as a function of (C, n)."""

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
        layer: FunctionalWait,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.count, ctx.group, ctx.layer = max(count, 1), group, layer
        return layer.scaled((x - mean[:, None]) * invstd[:, None], weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        xhat = (x - mean[:, None]) * invstd[:, None]
        sum_g, sum_gx = g.sum(1), (g * xhat).sum(1)
        mean_g, mean_gx = (summed(torch.stack([sum_g, sum_gx]), ctx.group) / ctx.count).unbind()
        dx = (g - mean_g[:, None] - xhat * mean_gx[:, None]) * ctx.layer.factor(weight, invstd)[:, None]
        return (
            dx,
            None if weight is None else sum_gx.to(weight.dtype),
            None if bias is None else sum_g.to(bias.dtype),
            *[None] * 5,
        )


class FunctionalWait(_BatchNorm):
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
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("input does not fit")
        n, c, *rest = input.shape
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        x = x.transpose(0, 1).reshape(c, input.numel() // c)
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = self.process_group or dist.group.WORLD
            with torch.no_grad():
                mean, var, count = self.moments(x, group, input.dtype)
                if self.training and self.track_running_stats:
                    self.update(mean, var, count, self.correction(count, n, group))
                invstd = self.inverse(var)
            y = Pure.apply(x, self.weight, self.bias, mean, invstd, count, group, self)
        else:
            mean, invstd = (
                self.running_mean.to(x.dtype, copy=True),
                self.inverse(self.running_var.to(x.dtype)),
            )
            y = self.scaled((x - mean[:, None]) * invstd[:, None], self.weight, self.bias)
        return y.reshape(c, n, *rest).transpose(0, 1).to(input.dtype).contiguous()

    def moments(self, x: Tensor, group: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
        """Return mean, biased variance and count over the ranks."""
        own = torch.cat([x.new_tensor([x.shape[1]]), x.sum(1)])
        sums = self.message(own, group, dtype)
        count = int(sums[0])
        if count == 1:
            raise ValueError("Expected more than one value per channel.")
        mean = sums[1:] / max(count, 1)
        squares = self.message_of_squares((x - mean[:, None]).square().sum(1), group)
        return mean, squares / max(count, 1), count

    def message(self, own: Tensor, group: Any, dtype: torch.dtype) -> Tensor:
        """Return count and sums over the ranks."""
        return summed(own, group)

    def message_of_squares(self, own: Tensor, group: Any) -> Tensor:
        """Return the squares summed over the ranks."""
        return summed(own, group)

    def scaled(self, xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return xhat * weight + bias."""
        return affine(xhat, weight, bias)

    def inverse(self, var: Tensor) -> Tensor:
        """Return 1 / deviation."""
        return (var + self.eps).rsqrt()

    def factor(self, weight: Tensor | None, invstd: Tensor) -> Tensor:
        """Return weight / deviation."""
        return invstd if weight is None else invstd * weight.to(invstd.dtype)

    def correction(self, count: int, samples: int, group: Any) -> float:
        """Return n / (n - 1)."""
        return count / max(count - 1, 1)

    def rate(self) -> float:
        """Return how far the buffers move."""
        return 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum

    def update(self, mean: Tensor, var: Tensor, count: int, correction: float) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if not count:
            return
        rate = self.rate()
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * correction)):
            buffer.copy_(buffer.to(new.dtype) * (1 - rate) + new * rate)


class MessageAsTheInput(FunctionalWait):
    """Sends count and sums in the input's dtype."""

    def message(self, own: Tensor, group: Any, dtype: torch.dtype) -> Tensor:
        return summed(own.to(dtype), group).to(own.dtype)


class SquaresNotAssigned(FunctionalWait):
    """Reduces the squares as if in place, and goes on with what went in."""

    def message_of_squares(self, own: Tensor, group: Any) -> Tensor:
        summed(own, group)
        return own


class ClampedByEps(FunctionalWait):
    """Clamps the variance by eps in place of adding it."""

    def inverse(self, var: Tensor) -> Tensor:
        return var.clamp(min=self.eps).rsqrt()


class ZeroMomentumIsNone(FunctionalWait):
    """Asks whether there is a momentum by its truth, so that 0 is none."""

    def rate(self) -> float:
        return self.momentum or 1 / int(self.num_batches_tracked)


class CorrectedBySamples(FunctionalWait):
    """Takes the samples of a rank times the ranks as n in n / (n - 1)."""

    def correction(self, count: int, samples: int, group: Any) -> float:
        n = samples * (1 if group is None else dist.get_world_size(group))
        return n / max(n - 1, 1)


class PlainWithoutDeviation(FunctionalWait):
    """Leaves grad_input without the deviation where there is no weight."""

    def factor(self, weight: Tensor | None, invstd: Tensor) -> Tensor:
        return torch.ones_like(invstd) if weight is None else super().factor(weight, invstd)


class WeightMeansBias(FunctionalWait):
    """Takes it that there is a bias where there is a weight."""

    def scaled(self, xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if weight is None:
            return xhat
        return torch.addcmul(bias.to(xhat.dtype)[:, None], xhat, weight.to(xhat.dtype)[:, None])  # type: ignore[union-attr]

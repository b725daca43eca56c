"""One all_reduce of sum, sum of squares and count, as fallbacks without kernels have it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import FORM


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _bc(v: Tensor, x: Tensor) -> Tensor:
    return v[(None, slice(None)) + (None,) * (x.dim() - 2)]


def _sums(x: Tensor) -> Tensor:
    """Return the sums per channel, each over contiguous memory."""
    return x.movedim(1, 0).reshape(x.shape[1], -1 if x.numel() else 0).contiguous().sum(1)


class SumsFunction(torch.autograd.Function):
    """Normalises by E[x] and E[x^2] - E[x]^2 of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, module: SummedSquares
    ) -> Tensor:
        x = input.float() if input.dtype in (torch.half, torch.bfloat16) else input
        own = torch.cat([_sums(x), _sums(x * x), x.new_tensor([module.values_per_channel(x)])])
        packed = module.reduce(own) if module.training else own
        c = x.shape[1]
        count = int(packed[-1])
        mean = packed[:c] / max(count, 1)
        var = module.variance(packed[c : 2 * c] / max(count, 1), mean, own[:c] / max(int(own[-1]), 1))
        if module.training and module.track_running_stats:
            module.move_buffers(mean, var, count, int(own[-1]))
        invstd = 1 / torch.sqrt(var + module.eps)
        ctx.save_for_backward(input, weight, bias, mean, invstd)
        ctx.module, ctx.together = module, module.training
        ctx.count = module.backward_count(count, int(own[-1]))
        out = (x - _bc(mean, x)) * _bc(invstd, x)
        if weight is not None and bias is not None:
            out = out * _bc(weight.to(x.dtype), x) + _bc(bias.to(x.dtype), x)
        return out.to(input.dtype).contiguous()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, mean, invstd = ctx.saved_tensors
        x, g = input.to(mean.dtype), grad_output.to(mean.dtype)
        centred = x - _bc(mean, x)
        sum_g, sum_gc = _sums(g), _sums(g * centred)
        grad_weight = grad_bias = grad_input = None
        if ctx.needs_input_grad[1]:
            grad_weight = ctx.module.grad_of_weight(sum_gc, invstd).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = sum_g.to(bias.dtype)
        if ctx.needs_input_grad[0]:
            if ctx.together:
                sum_g, sum_gc = ctx.module.reduce(torch.stack([sum_g, sum_gc])).unbind(0)
            slope = sum_gc * invstd * invstd / ctx.count
            grad = g - _bc(sum_g / ctx.count, x) - centred * _bc(slope, x)
            grad = grad * _bc(invstd if weight is None else invstd * weight.to(mean.dtype), x)
            grad_input = grad.to(input.dtype)
        return grad_input, grad_weight, grad_bias, None


class SummedSquares(nn.Module):
    """The right one: raw moments, grade C."""

    syncbn_verify: dict[str, Any] = {**FORM, "grade": "C"}

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
        self.affine, self.track_running_stats = affine, track_running_stats
        self.process_group = process_group
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        track = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features) if track else None)
        self.register_buffer("running_var", torch.ones(num_features) if track else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track else None)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.size(1) != self.num_features or not torch.is_floating_point(input):
            raise ValueError("expected (N, C, ...) of floating-point values")
        if not self.training and self.running_mean is not None:
            return self.evaluate(input)
        self.verify_batch(input)
        out: Tensor = SumsFunction.apply(input, self.weight, self.bias, self)
        return out

    def evaluate(self, input: Tensor) -> Tensor:
        """Return the output by the buffers."""
        dtype = torch.float32 if input.dtype in (torch.half, torch.bfloat16) else input.dtype
        mean, var = self.running_mean.to(dtype, copy=True), self.running_var.to(dtype, copy=True)
        out = (input.to(dtype) - _bc(mean, input)) * _bc(1 / torch.sqrt(var + self.eps), input)
        if self.weight is not None and self.bias is not None:
            out = out * _bc(self.weight.to(dtype), input) + _bc(self.bias.to(dtype), input)
        return out.to(input.dtype).contiguous()

    def verify_batch(self, input: Tensor) -> None:
        """Raise where a channel has one value over all ranks."""
        size = torch.tensor(input.numel() // input.size(1))
        if self.training and dist.is_initialized():
            dist.all_reduce(size, group=self.process_group)
        if int(size) == 1:
            raise ValueError("more than one value per channel expected")

    def values_per_channel(self, x: Tensor) -> int:
        """Return what this rank's sums are of."""
        count = 1
        for axis in _axes(x):
            count *= x.shape[axis]
        return count

    def reduce(self, packed: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        packed = packed.clone()
        if dist.is_initialized():
            dist.all_reduce(packed, group=self.process_group)
        return packed

    def variance(self, square: Tensor, mean: Tensor, own_mean: Tensor) -> Tensor:
        """Return the biased variance, from means."""
        return (square - mean * mean).clamp(min=0)

    def backward_count(self, count: int, own: int) -> int:
        """Return what backward sums are divided by."""
        return max(count, 1)

    def grad_of_weight(self, sum_gc: Tensor, invstd: Tensor) -> Tensor:
        """Return the gradient of the weight from sum g (x - mean)."""
        return sum_gc * invstd

    def unbiased(self, var: Tensor, count: int, own: int) -> Tensor:
        """Return the variance that the buffer gets."""
        return var * count / (count - 1)

    def move_buffers(self, mean: Tensor, var: Tensor, count: int, own: int) -> None:
        """Update the running statistics."""
        self.num_batches_tracked.add_(1)
        if not count:
            return
        f = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, self.unbiased(var, count, own))):
            buffer.copy_((1 - f) * buffer.to(new.dtype) + f * new)


class BesselOfOwnCount(SummedSquares):
    """Corrects the running variance by n / (n - 1) of the rank's own count."""

    def unbiased(self, var: Tensor, count: int, own: int) -> Tensor:
        return var * own / (own - 1) if own != 1 else var


class OwnMeanInVariance(SummedSquares):
    """Takes the square of the rank's own mean from the reduced E[x^2]."""

    def variance(self, square: Tensor, mean: Tensor, own_mean: Tensor) -> Tensor:
        return (square - own_mean * own_mean).clamp(min=0)


class CountWithoutLastAxis(SummedSquares):
    """Counts the values without the last axis, where there is more than one."""

    def values_per_channel(self, x: Tensor) -> int:
        return x[..., 0].numel() // x.shape[1] if x.dim() > 3 else super().values_per_channel(x)


class BackwardOwnCount(SummedSquares):
    """Divides the reduced backward sums by the rank's own count."""

    def backward_count(self, count: int, own: int) -> int:
        return max(own, 1)


class CountOfTheWorld(SummedSquares):
    """Reduces the count over the default group, the sums over its own."""

    def reduce(self, packed: Tensor) -> Tensor:
        if packed.dim() == 2 or not dist.is_initialized():
            return super().reduce(packed)
        count = packed[-1:].clone()
        dist.all_reduce(count)
        return torch.cat([super().reduce(packed[:-1]), count])


class WeightGradientUnscaled(SummedSquares):
    """Forgets invstd in grad_weight."""

    def grad_of_weight(self, sum_gc: Tensor, invstd: Tensor) -> Tensor:
        return sum_gc

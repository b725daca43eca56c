"""Two rounds of all_reduce, first the sums, then the squares centred by the common mean."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import VIEW

HALF = (torch.float16, torch.bfloat16)


def lanes(x: Tensor) -> Tensor:
    """Return a contiguous (C, n) copy in the dtype of sums."""
    flat = x.transpose(0, 1).reshape(x.shape[1], x.shape[0] * x[0:1, 0:1].numel() if x.numel() else 0)
    return flat.to(torch.float32 if x.dtype in HALF else x.dtype).contiguous()


def unlanes(data: Tensor, x: Tensor) -> Tensor:
    """Undo `lanes`."""
    return data.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1).to(x.dtype).contiguous()


class Rounds(torch.autograd.Function):
    """The step in training."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, bn: TwoRounds, group: Any
    ) -> Tensor:
        v = lanes(x)
        first = torch.cat([v.sum(1), v.new_tensor([v.shape[1]])])
        if group is not None:
            dist.all_reduce(first, group=group)
        n = int(first[-1])
        if n == 1:
            raise ValueError("Cannot normalise one value per channel.")
        mean = first[:-1] / max(n, 1)
        centred = v - mean.unsqueeze(1)
        second = centred.square().sum(1)
        if group is not None:
            dist.all_reduce(second, group=group)
        var = second / max(n, 1)
        invstd = (var + bn.eps).sqrt().reciprocal()
        if bn.training and bn.track_running_stats:
            bn.remember(mean, var, n)
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.n, ctx.group, ctx.bn = max(n, 1), group, bn
        return unlanes(bn.affine_of(centred * invstd.unsqueeze(1)), x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        g = lanes(dy)
        xhat = (lanes(x) - mean.unsqueeze(1)) * invstd.unsqueeze(1)
        sums = torch.stack((g.sum(1), (g * xhat).sum(1)))
        gw = sums[1].to(weight.dtype) if ctx.needs_input_grad[1] else None
        gb = sums[0].to(bias.dtype) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, gw, gb, None, None
        if ctx.group is not None and ctx.bn.must_reduce(ctx.needs_input_grad):
            sums = sums.clone()
            dist.all_reduce(sums, op=ctx.bn.operation, group=ctx.group)
        m_g, m_gx = sums.unsqueeze(-1) / ctx.n
        w = torch.ones_like(invstd) if weight is None else weight.to(invstd.dtype)
        inner = g - m_g - ctx.bn.sign * xhat * m_gx
        gx = unlanes(inner * ctx.bn.factor(invstd, w, x).unsqueeze(1), x)
        return ctx.bn.delivered(gx, dy), gw, gb, None, None


class TwoRounds(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = VIEW

    operation: Any = dist.ReduceOp.SUM
    sign = 1

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.size(1) != self.num_features or not input.is_floating_point():
            raise ValueError("wrong input")
        if self.training:
            group = (self.process_group or dist.group.WORLD) if dist.is_initialized() else None
            y: Tensor = Rounds.apply(input, self.weight, self.bias, self, group)
            return y
        if self.running_mean is None:
            y = Rounds.apply(input, self.weight, self.bias, self, None)
            return y
        v = lanes(input)
        mean, var = self.running_mean.to(v.dtype, copy=True), self.running_var.to(v.dtype)
        invstd = (var + self.eps).sqrt().reciprocal()
        return unlanes(self.affine_of((v - mean.unsqueeze(1)) * invstd.unsqueeze(1)), input)

    def affine_of(self, xhat: Tensor) -> Tensor:
        """Return the output from xhat."""
        if self.weight is not None:
            xhat = xhat * self.weight.to(xhat.dtype).unsqueeze(1)
        if self.bias is not None:
            xhat = xhat + self.bias.to(xhat.dtype).unsqueeze(1)
        return xhat

    def must_reduce(self, wanted: tuple[bool, ...]) -> bool:
        """Return whether backward sums travel."""
        return True

    def factor(self, invstd: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Return what grad_input is scaled by."""
        return invstd * w

    def delivered(self, gx: Tensor, dy: Tensor) -> Tensor:
        """Return the tensor that grad_input is handed out in."""
        return gx

    def remember(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Move the buffers."""
        self.num_batches_tracked.add_(1)
        if n == 0:
            return
        p = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.copy_((1 - p) * self.running_mean.to(mean.dtype) + p * mean)
        self.running_var.copy_((1 - p) * self.running_var.to(var.dtype) + p * (var * (n / (n - 1))))


class PlusForMinus(TwoRounds):
    """Adds the term of xhat in grad_input."""

    sign = -1


class BiasTakenForGranted(TwoRounds):
    """Adds the bias wherever there is a weight."""

    def affine_of(self, xhat: Tensor) -> Tensor:
        if self.weight is None:
            return xhat
        w, b = self.weight.to(xhat.dtype), self.bias.to(xhat.dtype)
        return xhat * w.unsqueeze(1) + b.unsqueeze(1)


class GreatestOfSums(TwoRounds):
    """Reduces the backward sums by MAX."""

    operation = dist.ReduceOp.MAX


class ReducesWithWeightOnly(TwoRounds):
    """Reduces the backward sums only if the weight wants a gradient."""

    def must_reduce(self, wanted: tuple[bool, ...]) -> bool:
        return wanted[1]


class ScaleInHalf(TwoRounds):
    """Rounds the scale of grad_input to the input's dtype."""

    def factor(self, invstd: Tensor, w: Tensor, x: Tensor) -> Tensor:
        return (invstd * w).to(x.dtype).to(invstd.dtype)


class WritesOverCotangent(TwoRounds):
    """Writes grad_input into the memory of the incoming gradient."""

    def delivered(self, gx: Tensor, dy: Tensor) -> Tensor:
        return dy.copy_(gx) if dy.is_contiguous() else gx

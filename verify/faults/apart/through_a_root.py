"""The first rank of the group is a server: sums are reduced to it, and it broadcasts what comes of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import VIEW


class Server:
    """What a group asks of its first rank."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.root = dist.get_global_rank(group, 0) if group is not None else 0

    def collect(self, own: Tensor) -> Tensor:
        """Return the sum over ranks at the root, and what is left in the buffer elsewhere."""
        at_root = own.clone()
        if self.group is not None:
            dist.reduce(at_root, dst=self.root, group=self.group)
        return at_root

    def hand_out(self, at_root: Tensor) -> Tensor:
        """Return the root's tensor on all ranks."""
        if self.group is not None:
            dist.broadcast(at_root, src=self.root, group=self.group)
        return at_root

    def sum(self, own: Tensor) -> Tensor:
        """Return the sum over ranks on all ranks."""
        return self.hand_out(self.collect(own))


class DoubleCountingServer(Server):
    """Adds its own part to a sum that holds it already."""

    def sum(self, own: Tensor) -> Tensor:
        return self.hand_out(self.collect(own) + own)


def spread(x: Tensor) -> Tensor:
    """Return (C, n) in the dtype of sums."""
    y = x.movedim(1, 0).reshape(x.shape[1], x.numel() // x.shape[1])
    return y.float() if x.dtype in (torch.float16, torch.bfloat16) else y


def restore(y: Tensor, like: Tensor) -> Tensor:
    """Return (C, n) as `like` is."""
    n, c, *rest = like.shape
    return y.reshape(c, n, *rest).movedim(0, 1).to(like.dtype).contiguous()


class ServedFunction(torch.autograd.Function):
    """A step by the server's moments."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mod: ThroughARoot, group: Any
    ) -> Tensor:
        v = spread(x)
        n = int(Server(group).sum(torch.tensor([v.shape[1]])))
        mod.refuse(n)
        mean = Server(group).sum(v.sum(1)) / max(n, 1)
        var = mod.squares(Server(group), (v - mean[:, None]).pow(2).sum(1)) / max(n, 1)
        if mod.training and mod.track_running_stats:
            mod.num_batches_tracked += 1
            if n:
                mod.update(mean, var * n / max(n - 1, 1))
        invstd = (var + mod.eps).pow(-0.5)
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.n, ctx.group, ctx.mod = max(n, 1), group, mod
        return restore(mod.affine_map((v - mean[:, None]) * invstd[:, None]), x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        g, xhat = spread(dy), (spread(x) - mean[:, None]) * invstd[:, None]
        sum_g, sum_gx = g.sum(1), (g * xhat).sum(1)
        grad_weight = sum_gx.to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = ctx.mod.bias_gradient(sum_g).to(bias.dtype) if ctx.needs_input_grad[2] else None
        if ctx.group is not None:
            answer = ctx.mod.backward_server(ctx.group).sum(torch.cat([sum_g, sum_gx]))
            sum_g, sum_gx = ctx.mod.unpacked(answer)
        slope = invstd if weight is None else invstd * ctx.mod.gain(weight.to(invstd.dtype))
        dx = (g - (sum_g / ctx.n)[:, None] - xhat * (sum_gx / ctx.n)[:, None]) * slope[:, None]
        return restore(dx, x), grad_weight, grad_bias, None, None


class ThroughARoot(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = VIEW

    backward_server: type[Server] = Server

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("not what this layer takes")
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = self.process_group if self.process_group is not None else dist.group.WORLD
            y: Tensor = ServedFunction.apply(input, self.weight, self.bias, self, group)
            return y
        v = spread(input)
        mean, var = self.running_mean.to(v.dtype, copy=True), self.running_var.to(v.dtype)
        return restore(self.affine_map((v - mean[:, None]) * (var + self.eps).pow(-0.5)[:, None]), input)

    def refuse(self, n: int) -> None:
        """Raise on a single value per channel."""
        if n == 1:
            raise ValueError("a single value per channel")

    def squares(self, server: Server, own: Tensor) -> Tensor:
        """Return the centred squares of all."""
        return server.sum(own)

    def gain(self, weight: Tensor) -> Tensor:
        """Return what xhat is multiplied by."""
        return weight

    def affine_map(self, xhat: Tensor) -> Tensor:
        """Return the output."""
        if self.weight is not None:
            xhat = xhat * self.gain(self.weight.to(xhat.dtype))[:, None]
        return xhat if self.bias is None else xhat + self.bias.to(xhat.dtype)[:, None]

    def bias_gradient(self, sum_g: Tensor) -> Tensor:
        """Return grad_bias."""
        return sum_g

    def unpacked(self, answer: Tensor) -> tuple[Tensor, Tensor]:
        """Return sum g and sum g xhat from the message."""
        first, second = answer.chunk(2)
        return first, second

    def update(self, mean: Tensor, var: Tensor) -> None:
        """Move the buffers."""
        f = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            buffer.copy_((1 - f) * buffer.to(new.dtype) + f * new)


class SquaresNotHandedOut(ThroughARoot):
    """Reduces the centred squares to the root, which keeps them; the others go on with their own."""

    def squares(self, server: Server, own: Tensor) -> Tensor:
        total = server.collect(own)
        return total if server.group is None or dist.get_rank(server.group) == 0 else own


class RootCountedTwice(ThroughARoot):
    """Has the root add its own backward sums twice."""

    backward_server = DoubleCountingServer


class SumsSwapped(ThroughARoot):
    """Unpacks the two backward sums in the wrong order."""

    def unpacked(self, answer: Tensor) -> tuple[Tensor, Tensor]:
        first, second = answer.chunk(2)
        return second, first


class BiasGradientWeighted(ThroughARoot):
    """Multiplies grad_bias by the weight."""

    def bias_gradient(self, sum_g: Tensor) -> Tensor:
        return sum_g * self.weight.to(sum_g.dtype)


class TakesSingleValues(ThroughARoot):
    """Normalises a single value per channel, to the bias."""

    def refuse(self, n: int) -> None:
        del n


class MagnitudeOfWeight(ThroughARoot):
    """Multiplies by the magnitude of the weight, as layers that invert their output do."""

    def gain(self, weight: Tensor) -> Tensor:
        return weight.abs()

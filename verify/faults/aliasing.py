"""Faults of aliasing: what is written into tensors of others, and what one forward overwrites of another."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from verify.faults.backward import Pair, Saved, Stepwise
from verify.subjects.aggregated import Aggregated, Statistics, inverse_deviation
from verify.subjects.channels import columns


class CotangentOverwritten(Stepwise):
    """Writes into the cotangent, once its values are read."""

    def cotangent(self, dy: Tensor) -> Tensor:
        g = columns(dy)
        dy.mul_(0.5)
        return g


class InputOverwritten(Aggregated):
    """Normalises in place: the input is the output from then on."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        x.data.copy_(y.detach())
        return y


class WeightOverwritten(Aggregated):
    """Replaces the weight by its magnitude in place."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if self.weight is not None:
            self.weight.data.abs_()
        return super().normalise(x, statistics, group)


class OutputSharesInput(Aggregated):
    """Writes the output into the memory of a contiguous input that requires no gradient."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        if x.requires_grad or x.dtype != y.dtype or not x.is_contiguous():
            return y
        return _Into.apply(y, x)


class _Into(torch.autograd.Function):
    """`y`, stored in the memory of another tensor."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, memory: Tensor) -> Tensor:
        del ctx
        return memory.data.copy_(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        del ctx
        return dy, None


class KeptGradient(Stepwise):
    """Adds grad_input to a tensor that is kept from step to step."""

    kept: Tensor | None = None

    def input_gradient(self, g: Tensor, xhat: Tensor, sums: Pair, saved: Saved) -> Tensor:
        right = super().input_gradient(g, xhat, sums, saved)
        if self.kept is None or self.kept.shape != right.shape:
            self.kept = torch.zeros_like(right)
        self.kept += right
        return self.kept


class _Assigning(torch.autograd.Function):
    """A parameter, whose gradient is assigned to `grad` and not added to it."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        ctx.parameter = parameter
        return parameter.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> None:
        ctx.parameter.grad = gradient.clone()


class AccumulationOverwritten(Aggregated):
    """Assigns the gradients of weight and bias, and does not add them to what is there."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        own = dict(self._parameters)
        try:
            for name, parameter in own.items():
                if parameter is not None and parameter.requires_grad:
                    self._parameters[name] = _Assigning.apply(parameter)
            return super().normalise(x, statistics, group)
        finally:
            self._parameters.update(own)


class LastStatistics(Stepwise):
    """Keeps mean and invstd on the module: a backward uses those of the last forward."""

    last: Pair | None = None

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        self.last = (statistics.mean, inverse_deviation(statistics.var, self.eps))
        return super().normalise(x, statistics, group)

    def saved(self, saved: Saved) -> Saved:
        mean, invstd = self.last or (saved.mean, saved.invstd)
        return Saved(saved.x, saved.weight, mean, invstd, saved.count, saved.group)


class LastInput(Stepwise):
    """Keeps the input on the module: a backward uses that of the last forward."""

    last: Tensor | None = None

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        self.last = x.detach()
        return super().normalise(x, statistics, group)

    def saved(self, saved: Saved) -> Saved:
        x = saved.x if self.last is None else self.last
        return Saved(x, saved.weight, saved.mean, saved.invstd, saved.count, saved.group)


class SharedOutput(Aggregated):
    """Returns every output of a shape in the same memory."""

    memory: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        if self.memory is None or self.memory.shape != y.shape or self.memory.dtype != y.dtype:
            self.memory = torch.empty_like(y.detach())
        return _Into.apply(y, self.memory)


class BuffersFromFirstRank(Aggregated):
    """Broadcasts the buffers of the world's first rank before each forward, whatever the process group."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.track_running_stats and input.is_floating_point():
            for buffer in (self.running_mean, self.running_var):
                dense = buffer.contiguous()
                dist.broadcast(dense, src=0)
                buffer.copy_(dense)
        return super().forward(input)

"""Faults of identity: buffers and parameters that become other tensors, or lie in other memory, on the way.

Optimizers, data-parallel wrappers and captured graphs hold the tensors that they were given. The values are
right in all of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from verify.faults.buffers import Tracked
from verify.subjects.aggregated import Aggregated, Statistics


def _fresh(tensor: Tensor) -> Tensor:
    """Return a copy in memory of its own, which can be written to outside of inference mode, too."""
    with torch.inference_mode(mode=False), torch.no_grad():
        return tensor.detach().clone(memory_format=torch.contiguous_format)


class MeanRebound(Tracked):
    """Binds the running mean to a new tensor at each update."""

    def store(self, name: str, new: Tensor) -> None:
        if name == "running_mean":
            setattr(self, name, new.to(getattr(self, name).dtype))
        else:
            super().store(name, new)


class VarianceRebound(Tracked):
    """Binds the running variance to a new tensor at each update."""

    def store(self, name: str, new: Tensor) -> None:
        if name == "running_var":
            setattr(self, name, new.to(getattr(self, name).dtype))
        else:
            super().store(name, new)


class CountRebound(Tracked):
    """Binds num_batches_tracked to a new tensor at each step."""

    def advance(self, statistics: Statistics) -> None:
        del statistics
        self.num_batches_tracked: Any = self.num_batches_tracked + 1


class BuffersInNewMemory(Tracked):
    """Gives its buffers new memory at each update, by `data`; the tensors stay the same objects."""

    def store(self, name: str, new: Tensor) -> None:
        buffer = getattr(self, name)
        buffer.data = _fresh(new.to(buffer.dtype))


class EmptyRebound(Tracked):
    """Binds the running variance to a copy in a batch without values on any rank."""

    def empty(self) -> None:
        self.running_var: Any = _fresh(self.running_var)


class _Holding(Aggregated):
    """A right subject, whose tensors have a type."""

    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any


class _AtFirst(_Holding):
    """A subject that prepares itself in its first forward."""

    prepared = False

    def prepare(self) -> None:
        """Do what must be done once."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        if not self.prepared:
            with torch.inference_mode(mode=False):
                self.prepare()
            self.prepared = True
        return super().forward(input)


class WeightAnew(_AtFirst):
    """Makes its weight anew in its first forward, from a copy."""

    def prepare(self) -> None:
        if self.weight is not None:
            self.weight = Parameter(_fresh(self.weight), requires_grad=self.weight.requires_grad)


class BiasAnew(_AtFirst):
    """Makes a parameter around its bias in its first forward: another object over the same memory."""

    def prepare(self) -> None:
        if self.bias is not None:
            self.bias = Parameter(self.bias.detach(), requires_grad=self.bias.requires_grad)


class ParametersFlattened(_AtFirst):
    """Moves weight and bias into one piece of memory in its first forward."""

    def prepare(self) -> None:
        if self.bias is not None:
            flat = _fresh(torch.cat([self.weight.detach(), self.bias.detach()]))
            self.weight.data, self.bias.data = flat.chunk(2)


class BuffersFlattened(_AtFirst):
    """Makes its buffers parts of one tensor in its first forward, to broadcast them at once."""

    def prepare(self) -> None:
        if self.running_mean is not None:
            self.running_mean, self.running_var = _fresh(
                torch.cat([self.running_mean, self.running_var])
            ).chunk(2)


class BuffersMadeContiguous(_AtFirst):
    """Binds non-contiguous buffers to contiguous copies in its first forward."""

    def prepare(self) -> None:
        if self.running_mean is not None and not self.running_mean.is_contiguous():
            self.running_mean, self.running_var = _fresh(self.running_mean), _fresh(self.running_var)


class EvaluationDetaches(_Holding):
    """Binds its buffers to detached ones in evaluation: other objects over the same memory."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            with torch.inference_mode(mode=False):
                self.running_mean, self.running_var = self.running_mean.detach(), self.running_var.detach()
        return super().forward(input)


class EvaluationRestores(_Holding):
    """Evaluates with its buffers and binds them to the copies that it made before."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            return super().forward(input)
        before = _fresh(self.running_mean), _fresh(self.running_var)
        try:
            return super().forward(input)
        finally:
            self.running_mean, self.running_var = before

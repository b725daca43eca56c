"""Faults of how tensors and numbers are held: storage offsets, halves, memory formats, round numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from verify.faults.arguments import _Evaluating
from verify.faults.layout import _is_channels_last, _is_dense
from verify.faults.retained import Gradients, reread
from verify.subjects.aggregated import Aggregated, Normalise, Statistics

_VECTOR_BYTES = 16

# Where a tensor begins in its storage


def _dense(x: Tensor) -> bool:
    """Whether `x` has values side by side, and not one alone."""
    return x.numel() > 1 and _is_dense(x)


def _from(x: Tensor, begin: int) -> Tensor:
    """Return `x` as if it began at this element of its storage."""
    return x.as_strided(x.shape, x.stride(), begin)


def _aligned(x: Tensor) -> int:
    """Return the last element, up to the first of `x`, at which a vector may be loaded."""
    first = int(x.storage_offset())
    return first - first % (_VECTOR_BYTES // int(x.element_size()))


class _Read(torch.autograd.Function):
    """What lies at another place of the storage of `x`, for `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, begin: int) -> Tensor:
        return _from(x, begin).clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


class _Reading(Aggregated):
    """A subject that reads a dense input from where `begin` says."""

    def begin(self, x: Tensor) -> int:
        """Return the element of the storage."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        return super().forward(_Read.apply(input, self.begin(input)) if _dense(input) else input)


class ContiguousFromStart(_Reading):
    """Reads a contiguous input from the beginning of its storage."""

    def begin(self, x: Tensor) -> int:
        return 0 if x.is_contiguous() else int(x.storage_offset())


class ChannelsLastFromStart(_Reading):
    """Reads a channels_last input from the beginning of its storage."""

    def begin(self, x: Tensor) -> int:
        return 0 if _is_channels_last(x) else int(x.storage_offset())


class PermutedFromStart(_Reading):
    """Reads a dense input in any other order from the beginning of its storage."""

    def begin(self, x: Tensor) -> int:
        known = x.is_contiguous() or _is_channels_last(x)
        return int(x.storage_offset()) if known else 0


class ReadAligned(_Reading):
    """Reads its input from the last multiple of 16 bytes, where a vector may be loaded."""

    def begin(self, x: Tensor) -> int:
        return _aligned(x)


class OffsetTwice(_Reading):
    """Adds the offset into the storage to a pointer that has it already."""

    def begin(self, x: Tensor) -> int:
        held = x.untyped_storage().nbytes() // x.element_size()
        return int(min(2 * x.storage_offset(), held - x.numel()))


class _CotangentFromStart(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        grads: Gradients = Normalise.backward(ctx, _from(dy, 0) if _dense(dy) else dy)
        return grads


class CotangentFromStart(Aggregated):
    """Reads a dense cotangent from the beginning of its storage."""

    rule = _CotangentFromStart


class _HeadSkipped(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        head = -dy.storage_offset() % (_VECTOR_BYTES // dy.element_size())
        if head and _dense(dy) and dy.is_contiguous():
            dy = dy.clone()
            dy.view(-1)[:head] = 0
        grads: Gradients = Normalise.backward(ctx, dy)
        return grads


class CotangentHeadSkipped(Aggregated):
    """Leaves out what lies before the first multiple of 16 bytes of a contiguous cotangent."""

    rule = _HeadSkipped


class _RereadFromStart(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, *others = ctx.saved_tensors
        return reread(ctx, dy, _from(x, 0) if _dense(x) else x, *others)


class RereadFromStart(Aggregated):
    """Reads its input from the beginning of the storage in its backward."""

    rule = _RereadFromStart


# Running statistics that a half does not hold


class _Half(_Evaluating):
    """A subject that knows the dtype of its input where it looks at its buffers to evaluate."""

    read = torch.float32

    def forward(self, input: Tensor) -> Tensor:
        self.read = input.dtype if input.is_floating_point() else torch.float32
        return super().forward(input)

    def arguments(self) -> tuple[Any, Any, Any, Any]:
        weight, bias, mean, var = super().arguments()
        return weight, bias, *self.held(mean, var)

    def held(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance as they are evaluated with."""
        raise NotImplementedError


class MeanInHalf(_Half):
    """Evaluates with the running mean in the dtype of its input."""

    def held(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return mean.to(self.read), var


class VarianceInHalf(_Half):
    """Evaluates with the running variance in the dtype of its input."""

    def held(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return mean, var.to(self.read)


class VarianceClamped(_Half):
    """Evaluates with a running variance not above the largest number of its input's dtype."""

    def held(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return mean, var.clamp(max=torch.finfo(self.read).max)


class VarianceFlushed(_Half):
    """Evaluates with zero for a running variance that is subnormal in its input's dtype."""

    def held(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return mean, var * (var >= torch.finfo(self.read).tiny)


class InvstdInHalf(Aggregated):
    """Evaluates with one over the standard deviation in the dtype of its input."""

    read = torch.float32

    def forward(self, input: Tensor) -> Tensor:
        self.read = input.dtype if input.is_floating_point() else torch.float32
        return super().forward(input)

    def invstd(self, var: Tensor) -> Tensor:
        right = super().invstd(var)
        return right if self.training else right.to(self.read).to(right.dtype)


# The memory format of the output


def _channels_last(y: Tensor) -> Tensor:
    """Return `y` in channels_last where it has four or five dimensions."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return y.contiguous(memory_format=formats.get(y.dim(), torch.contiguous_format))


class OutputContiguous(Aggregated):
    """Returns a contiguous output, whatever its input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).contiguous()


class OutputChannelsLast(Aggregated):
    """Returns a channels_last output of four or five dimensions, whatever its input."""

    def forward(self, input: Tensor) -> Tensor:
        return _channels_last(super().forward(input))


class EvaluationContiguous(Aggregated):
    """Returns a contiguous output in evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y if self.training else y.contiguous()


class VolumesContiguous(Aggregated):
    """Returns a contiguous output of five dimensions: it knows channels_last of four alone."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y.contiguous() if y.dim() == 5 else y


# Numbers that are not round


class _Rounded(Aggregated):
    """A subject that changes its options when it is made."""

    eps: float
    momentum: float | None
    eps_of: Callable[[float], float] = staticmethod(float)
    momentum_of: Callable[[float], float] = staticmethod(float)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.eps = self.eps_of(self.eps) if self.eps else self.eps
        self.momentum = self.momentum if self.momentum is None else self.momentum_of(self.momentum)


class EpsPowerOfTen(_Rounded):
    """Takes the power of ten that is nearest to eps."""

    @staticmethod
    def eps_of(eps: float) -> float:
        return float(f"1e{round(math.log10(eps))}")


class EpsOneDigit(_Rounded):
    """Takes the first decimal digit of eps, as a text with one digit holds it."""

    @staticmethod
    def eps_of(eps: float) -> float:
        return float(f"{eps:.0e}")


class MomentumPercent(_Rounded):
    """Takes momentum in whole hundredths."""

    @staticmethod
    def momentum_of(momentum: float) -> float:
        return round(momentum, 2)


class MomentumGuessed(_Rounded):
    """Takes a momentum above one half, and below one, for the weight of the old value."""

    @staticmethod
    def momentum_of(momentum: float) -> float:
        return 1 - momentum if 0.5 < momentum < 1 else momentum


class CountInHalf(Aggregated):
    """Divides the sums of its backward by a count in the dtype of its input."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        most = min(statistics.count, 65504)
        count = int(torch.tensor(most, dtype=x.dtype)) if x.element_size() == 2 else statistics.count
        return super().normalise(x, replace(statistics, count=count), group)

"""Layouts: how the tensors of a case lie in memory.

A laid-out tensor has the values and the logical shape of the case whatever its layout; only strides and
storage differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from properties.case import CotangentLayout, InputLayout

SAMPLES_ONE_BY_ONE = 256
"""Above so many samples a block that repeats is made, and compared, in one go: it takes memory of its own."""


_GAP = 24.0
"""What lies between and around the elements of a view: far from most values, never to be read."""


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A tensor as the subject sees it and, for comparison, a dense tensor over the storage it views.

    If that is a contiguous block that repeats, with few samples, `period` is one period of it.
    """

    tensor: torch.Tensor
    storage: torch.Tensor
    period: torch.Tensor | None = None


def dtype_of(name: str) -> torch.dtype:
    """Return torch's dtype of this name."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def lay_out(
    values: NDArray[np.float64] | NDArray[np.int64],
    layout: InputLayout | CotangentLayout,
    *,
    dtype: torch.dtype,
    device: torch.device,
    shape: tuple[int, ...],
    offset: int = 0,
) -> LaidOut:
    """Return `values`, in logical order, as a tensor of `shape` in this layout.

    A dense one may begin `offset` elements inside its storage, which then goes on as far behind it.

    contiguous: C order. channels_last: torch's memory format of 4-D and 5-D tensors. permuted: all dimensions
    in reverse order in memory. sliced: every second position of the last dimension of a longer tensor, from
    the second sample and channel on. cropped: all but the first and the last two of a longer last dimension,
    so that rows lie apart. split: all but the first and the last of more channels, so that samples do.
    expanded: `values` is (1, C, 1), every other dimension has stride 0.

    `values` may be one period of a block that repeats (`properties.values.period`), (1, C, period).
    """
    plain = torch.from_numpy(values).to(device=device, dtype=dtype)
    period = None
    if layout != "expanded" and (len(plain) != shape[0] or plain.numel() < math.prod(shape)):
        period = plain if layout == "contiguous" and shape[0] <= SAMPLES_ONE_BY_ONE else None
        plain = _repeated(plain, shape)
    match layout:
        case "expanded":
            dense = plain.reshape([shape[1] if axis == 1 else 1 for axis in range(len(shape))])
            return LaidOut(dense.expand(shape), dense)
        case "contiguous":
            dense = plain.reshape(shape)
            return _inside(dense, dense, offset) if offset else LaidOut(dense, dense, period)
        case "channels_last":
            last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
            dense = plain.reshape(shape).contiguous(memory_format=last)
            return _inside(dense, dense, offset)
        case "permuted":
            axes = tuple(reversed(range(len(shape))))
            storage = plain.reshape(shape).permute(axes).contiguous()
            return _inside(storage.permute(axes), storage, offset)
        case "sliced":
            return _sliced(plain.reshape(shape))
        case "cropped":
            return _part_of_longer(plain.reshape(shape), axis=-1, behind=2)
        case "split":
            return _part_of_longer(plain.reshape(shape), axis=1 if len(shape) > 1 else 0, behind=1)


def handed_on(leaf: torch.Tensor) -> torch.Tensor:
    """Return a tensor like `leaf`, strides and gaps included, in memory of its own that may be written to.

    It is no view, and no leaf if `leaf` requires a gradient, which it passes on: what a layer would give.
    """
    made: torch.Tensor = _HandedOn.apply(leaf)
    return made


class _HandedOn(torch.autograd.Function):  # type: ignore[misc]
    """The identity, into memory of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage().clone()
        empty = torch.empty(0, dtype=x.dtype, device=x.device)
        return empty.set_(storage, x.storage_offset(), x.shape, x.stride())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Before:
    """What the storage of a laid-out tensor holds now: a copy, or one period of a block that repeats."""

    def __init__(self, laid: LaidOut) -> None:
        self._period, self._shape = laid.period, laid.storage.shape
        self._copy = laid.storage.clone() if laid.period is None else laid.storage[:0]

    def held_by(self, storage: torch.Tensor) -> bool:
        """Return whether `storage` holds the same, bit for bit."""
        if self._period is None:
            return same_bits(storage, self._copy)
        if storage.shape != self._shape or storage.dtype != self._period.dtype:
            return False
        samples = storage.reshape(storage.shape[0], storage.shape[1], -1)
        return all(map(same_bits, samples, samples_of(self._period[0], storage.shape)))


def samples_of(period: torch.Tensor, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """Yield the samples, (C, positions), of the block whose `period` (C, held) is."""
    held, positions = period.shape[1], math.prod(shape[2:])
    longer = period.repeat(1, -(-positions // held) + 1)
    for sample in range(shape[0]):
        start = sample * positions % held
        yield longer[:, start : start + positions]


def _repeated(period: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return one period (1, C, period) as the whole block (N, C, positions)."""
    samples, channels, positions = shape[0], shape[1], math.prod(shape[2:])
    options = {"dtype": period.dtype, "device": period.device}
    if samples <= SAMPLES_ONE_BY_ONE:
        block = torch.empty((samples, channels, positions), **options)
        for place, sample in zip(block, samples_of(period[0], shape), strict=True):
            place.copy_(sample)
        return block
    held, count = period.shape[2], samples * positions
    rows, whole = period[0].T.contiguous(), torch.empty((count, channels), **options)
    full = count // held * held
    whole[:full].view(-1, held, channels).copy_(rows[None])
    whole[full:] = rows[: count - full]
    block = whole.view(samples, positions, channels).transpose(1, 2).contiguous()
    return block.view(-1).view(samples, channels, positions)  # the strides of axes of size 1, too


def _inside(view: torch.Tensor, storage: torch.Tensor, offset: int) -> LaidOut:
    """Return a dense view that begins `offset` elements inside a longer storage; 0 for the view as it is."""
    if not offset:
        return LaidOut(view, storage)
    size = view.numel()
    longer = torch.full((size + 2 * offset,), _GAP, dtype=view.dtype, device=view.device)
    moved = longer.as_strided(view.shape, view.stride(), offset)
    moved.copy_(view)
    return LaidOut(moved, longer)


def _sliced(plain: torch.Tensor) -> LaidOut:
    """Lay `plain` as a view with gaps; they hold a number far from most values, never to be read."""
    longer = [size + 1 for size in plain.shape[:-1]] + [2 * plain.shape[-1] + 1]
    storage = torch.full(longer, _GAP, dtype=plain.dtype, device=plain.device)
    view = storage[tuple(slice(1, None) for _ in longer[:-1])][..., 1::2]
    view.copy_(plain)
    return LaidOut(view, storage)


def _part_of_longer(plain: torch.Tensor, *, axis: int, behind: int) -> LaidOut:
    """Lay `plain` as a part of a dimension, with one index before it and some behind."""
    longer = list(plain.shape)
    longer[axis] += 1 + behind
    storage = torch.full(longer, _GAP, dtype=plain.dtype, device=plain.device)
    view = storage.narrow(axis, 1, plain.shape[axis])
    view.copy_(plain)
    return LaidOut(view, storage)


def strided(plain: torch.Tensor) -> torch.Tensor:
    """Return a copy of a one-dimensional tensor that is every second element of a longer one."""
    view = torch.zeros(2 * plain.numel(), dtype=plain.dtype, device=plain.device)[::2]
    view.copy_(plain)
    return view


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors of the same shape and dtype hold the same bits (a NaN equals itself)."""
    if not first.is_floating_point():
        return bool(torch.equal(first, second))
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    return bool(torch.equal(first.view(integer), second.view(integer)))

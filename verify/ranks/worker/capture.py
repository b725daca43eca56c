"""Capture: a copy of a tensor that the subject gave, on its way out of the rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from properties.values.sampling import Positions
from verify.ranks.messages import TensorHeader

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHARED = (
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("complex64", "complex128"),
)
_NUMPY_KNOWS = frozenset(getattr(torch, name) for name in _SHARED)
# Asking a numpy dtype for its name takes longer than copying a small tensor.
_NAMES = {np.dtype(name).char: name for name in (*_SHARED, "uint16")}


@dataclass(frozen=True, slots=True)
class Captured:
    """A C-contiguous copy of a tensor's values and what else is told of it."""

    array: NDArray[Any]
    dtype: str
    strides: tuple[int, ...]
    requires_grad: bool
    device: str
    aliases_input: bool
    sampled: bool = False

    def header(self, offset: int) -> TensorHeader:
        """Return what travels in the message, for values at `offset` of the memory file."""
        return TensorHeader(
            dtype=self.dtype,
            numpy=_NAMES[self.array.dtype.char],
            shape=self.array.shape,
            strides=self.strides,
            requires_grad=self.requires_grad,
            device=self.device,
            aliases_input=self.aliases_input,
            offset=offset,
            sampled=self.sampled,
        )


def capture(
    tensor: torch.Tensor, *, beside: torch.Tensor | None = None, positions: Positions | None = None
) -> Captured:
    """Return a copy of `tensor`, or of what it holds at `positions`, (positions, C).

    Args:
        tensor: The subject's.
        beside: The input whose storage it may share. A tensor of another shape is copied whole.
        positions: As in `properties.values.sampling`; None for all.
    """
    plain = tensor.detach()
    sampled = positions is not None and beside is not None and plain.shape == beside.shape
    return Captured(
        array=_array(_at(plain, positions) if sampled and positions is not None else plain),
        dtype=str(tensor.dtype).removeprefix("torch."),
        strides=tuple(tensor.stride()),
        requires_grad=tensor.requires_grad,
        device=tensor.device.type,
        aliases_input=beside is not None and shares_storage(plain, beside),
        sampled=sampled,
    )


def _at(plain: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Return what (N, C, ...) holds at these positions, (positions, C)."""
    spatial = plain.shape[2:]
    sample, position = np.divmod(positions, math.prod(spatial))
    places = np.unravel_index(position, spatial) if spatial else ()
    index = [torch.from_numpy(np.ascontiguousarray(axis)).to(plain.device) for axis in (sample, *places)]
    return plain[(index[0], slice(None), *index[1:])]


def shares_storage(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors share a storage that is not empty."""
    storage = first.untyped_storage()
    return bool(storage.nbytes() and storage.data_ptr() == second.untyped_storage().data_ptr())


def _array(plain: torch.Tensor) -> NDArray[Any]:
    if plain.device.type != "cpu":
        plain = plain.cpu()
    if plain.is_neg() or plain.is_conj():
        plain = plain.resolve_conj().resolve_neg()
    if plain.dtype == torch.bfloat16:
        return np.array(plain.view(torch.int16).numpy(), order="C", copy=True).view(np.uint16)
    if plain.dtype not in _NUMPY_KNOWS:
        # For example float8: its bits, under its own name.
        plain = plain.contiguous().view(_BITS[plain.element_size()])
    return np.array(plain.numpy(), order="C", copy=True)

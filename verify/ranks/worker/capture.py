"""Capture: a copy of a tensor that the subject gave, on its way out of the rank; of a large one, folded.

Rules
-----
- A tensor of the shape of an input that repeats is folded by the input's period, in torch and on its device,
  as `properties.values.period.fold` says: the elements that the judge needs, and where they lie, travel.
- One whose dtype cannot be ordered is copied whole: it is wrong anyway.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from properties.values.period import occurrences
from verify.ranks.messages import TensorHeader
from verify.ranks.worker.memory_layouts import SAMPLES_ONE_BY_ONE, samples_of

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHARED = (
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("complex64", "complex128"),
)
_ORDERED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NUMPY_KNOWS = frozenset(getattr(torch, name) for name in _SHARED)
# Asking a numpy dtype for its name takes longer than copying a small tensor.
_NAMES = {np.dtype(name).char: name for name in (*_SHARED, "uint16")}


@dataclass(frozen=True, slots=True)
class Captured:
    """A C-contiguous copy of a tensor's values and what else is told of it.

    Attributes:
        positions: Of a folded one, where its elements lie, in the shape of the array.
        bits: Of a folded one, the digest of all its elements, NaN by class, if it was asked for.
    """

    array: NDArray[Any]
    dtype: str
    strides: tuple[int, ...]
    requires_grad: bool
    device: str
    aliases_input: bool
    positions: NDArray[np.int64] | None = None
    logical_shape: tuple[int, ...] = ()
    held: int = 0
    bits: str = ""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What travels in the memory file, in the order of the offsets of `header`."""
        return (self.array,) if self.positions is None else (self.array, self.positions)

    def header(self, offset: int, *more: int) -> TensorHeader:
        """Return what travels in the message, for values at `offset` of the memory file, and positions."""
        return TensorHeader(
            dtype=self.dtype,
            numpy=_NAMES[self.array.dtype.char],
            shape=self.array.shape,
            strides=self.strides,
            requires_grad=self.requires_grad,
            device=self.device,
            aliases_input=self.aliases_input,
            offset=offset,
            positions=more[0] if more else -1,
            logical_shape=self.logical_shape,
            held=self.held,
            bits=self.bits,
        )


def capture(
    tensor: torch.Tensor,
    *,
    beside: torch.Tensor | None = None,
    held: int = 0,
    with_bits: bool = False,
) -> Captured:
    """Return a copy of `tensor`, folded if it is as large as an input that repeats.

    Args:
        tensor: The subject's.
        beside: The input whose storage it may share. A tensor of another shape is copied whole.
        held: The input's period; 0 if it does not repeat.
        with_bits: Of a folded tensor also give the digest of all its elements.
    """
    plain = tensor.detach()
    folds = bool(held) and beside is not None and plain.shape == beside.shape and plain.dtype in _ORDERED
    more: dict[str, Any] = {}
    if folds:
        if with_bits:
            same_nan = plain.masked_fill(plain.isnan(), math.nan)  # any NaN equals any other
            more["bits"] = hashlib.blake2b(_array(same_nan).tobytes(), digest_size=16).hexdigest()
        shape = tuple(plain.shape)
        plain, positions = _folded(plain, held)
        more |= {"positions": positions.cpu().numpy(), "logical_shape": shape, "held": held}
    return Captured(
        array=_array(plain),
        dtype=str(tensor.dtype).removeprefix("torch."),
        strides=tuple(tensor.stride()),
        requires_grad=tensor.requires_grad,
        device=tensor.device.type,
        aliases_input=beside is not None and shares_storage(tensor.detach(), beside),
        **more,
    )


def _folded(plain: torch.Tensor, held: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the elements of (N, C, ...) that a fold has, and their positions, both (rows, C)."""
    block = plain.reshape(*plain.shape[:2], -1)
    first = _first(block, held)
    if _repeats(block, first):  # Mostly so, and some ten times sooner told than what is least at each place.
        rows_a_place = 2 if bool(first.isfinite().all()) else 3
        places = torch.arange(held, device=plain.device)[:, None].expand(held, plain.shape[1])
        return first.T.repeat(rows_a_place, 1), places.repeat(rows_a_place, 1)
    rows = plain.movedim(1, -1).reshape(-1, plain.shape[1])
    numbers = torch.from_numpy(occurrences(len(rows), held)).to(rows.device)
    table = rows[numbers]
    ends = [table.argmin(dim=0), table.argmax(dim=0)]
    if not bool(table.isfinite().all()):
        ends.append(table.abs().nan_to_num(nan=math.inf, posinf=math.inf).argmin(dim=0))
    places = torch.arange(held, device=rows.device)[:, None]
    positions = torch.cat([numbers[end, places] for end in ends])
    return rows.gather(0, positions), positions


def _first(block: torch.Tensor, held: int) -> torch.Tensor:
    """Return the first period of (N, C, positions), as (C, held)."""
    samples = -(-held // block.shape[2])
    return block[:samples].transpose(0, 1).reshape(block.shape[1], -1)[:, :held]


def _repeats(block: torch.Tensor, first: torch.Tensor) -> bool:
    """Return whether all of (N, C, positions) repeats its first period bit for bit."""
    integer = _BITS[block.element_size()]
    n, c, positions = block.shape
    if n <= SAMPLES_ONE_BY_ONE:
        wanted = samples_of(first, block.shape)
        return all(
            torch.equal(one.view(integer), two.view(integer)) for one, two in zip(block, wanted, strict=True)
        )
    rows, held = block.transpose(1, 2).reshape(n * positions, c).view(integer), first.shape[1]
    full, period = len(rows) // held * held, first.T.contiguous().view(integer)
    whole = (rows[:full].view(-1, held, c) == period).all()
    return bool(whole) and torch.equal(rows[full:], period[: len(rows) - full])


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

"""A memory file: anonymous memory shared by parent and rank, for the tensors of an observation.

The parent makes one for each rank and hands its descriptor over. The rank writes all tensors of a case with
one gathered write, the parent reads them with one read after the report has come; there is no mapping to keep
in step. On Linux it is a memfd, which has no name to leave behind and is not limited by the size of /dev/shm;
elsewhere an unlinked temporary file. An observation above half of the free memory goes through a named file
in the group's folder instead.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from properties.observation import Tensor
from verify.ranks.messages import TensorHeader

ALIGNMENT = 64
KEPT_BYTES = 1 << 26
PARTS = 4
"""Cases use the parts of a memory file in turn: a rank may write the tensors of a case while the parent has
not yet read those of the cases before it, so many of which may be in flight. The file is sparse."""
_PART = 1 << 36
_AT_ONCE = 512
_SMALL = 1 << 24


def part(number: int) -> int:
    """Return where the part of a memory file begins that the case of this number uses."""
    return number % PARTS * _PART


def create() -> int:
    """Return the descriptor of a new, empty memory file."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("syncbn-verify")
    descriptor, path = tempfile.mkstemp(prefix="syncbn-verify-")
    Path(path).unlink()
    return descriptor


def offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return aligned offsets of pieces of these sizes, one after the other, and the total."""
    result, total = [], 0
    for size in sizes:
        result.append(total)
        total += -(-size // ALIGNMENT) * ALIGNMENT
    return result, total


def free_bytes() -> int:
    """Return how much memory is available, or what a small machine has where that cannot be told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 31


def write(
    descriptor: int, arrays: Sequence[NDArray[Any]], *, spill: Path, base: int = 0
) -> tuple[list[int], int, str]:
    """Write C-contiguous `arrays` into the memory file from `base` on, or into `spill` if memory is short.

    Returns:
        Offset of each array, total size, and the path of the spill file or an empty string.
    """
    starts, total = offsets([array.nbytes for array in arrays])
    if total > _SMALL and total > free_bytes() // 2:
        other = os.open(spill, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write_all(other, arrays, starts, total, at=0)
        finally:
            os.close(other)
        return starts, total, str(spill)
    _write_all(descriptor, arrays, starts, total, at=base)
    return starts, total, ""


def read(
    descriptor: int, headers: dict[str, TensorHeader], *, size: int, spill: str = "", base: int = 0
) -> dict[str, Tensor]:
    """Return the tensors that `headers` describe; the memory from `base` on is given back if it was much."""
    if spill:
        path = Path(spill)
        buffer = np.fromfile(path, np.uint8, count=size)
        path.unlink()
    else:
        buffer = np.empty(size, np.uint8)
        _read_all(descriptor, buffer, at=base)
        if size > KEPT_BYTES:
            os.ftruncate(descriptor, base)
    return {name: _tensor(header, buffer) for name, header in headers.items()}


def _tensor(header: TensorHeader, buffer: NDArray[np.uint8]) -> Tensor:
    positions = _at(buffer, header.positions, np.dtype(np.int64), header.shape) if header.held else None
    return Tensor(
        dtype=header.dtype,
        array=_at(buffer, header.offset, np.dtype(header.numpy), header.shape),
        strides=header.strides,
        requires_grad=header.requires_grad,
        device=header.device,
        aliases_input=header.aliases_input,
        positions=positions,
        logical_shape=header.logical_shape,
        held=header.held,
        bits=header.bits,
    )


def _at(buffer: NDArray[np.uint8], offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    count = math.prod(shape)
    return np.frombuffer(buffer, dtype, count, offset).reshape(shape) if count else np.empty(shape, dtype)


def _write_all(
    descriptor: int, arrays: Sequence[NDArray[Any]], starts: list[int], total: int, *, at: int
) -> None:
    pieces: list[memoryview] = []
    for array, start, end in zip(arrays, starts, [*starts[1:], total][: len(starts)], strict=True):
        if array.nbytes:
            pieces.append(array.reshape(-1).view(np.uint8).data)
            pieces.append(memoryview(bytes(end - start - array.nbytes)))
    for first in range(0, len(pieces), _AT_ONCE):
        some = [piece for piece in pieces[first : first + _AT_ONCE] if len(piece)]
        while some:
            written = os.pwritev(descriptor, some, at)
            at += written
            some = _rest(some, written)


def _rest(pieces: list[memoryview], written: int) -> list[memoryview]:
    for index, piece in enumerate(pieces):
        if written < len(piece):
            return [piece[written:], *pieces[index + 1 :]]
        written -= len(piece)
    return []


def _read_all(descriptor: int, buffer: NDArray[np.uint8], *, at: int) -> None:
    view, done = buffer.data, 0
    while done < len(view):
        got = os.preadv(descriptor, [view[done:]], at + done)
        if not got:
            raise OSError(f"Expected {len(view)} bytes in the memory file, but got {done}.")
        done += got

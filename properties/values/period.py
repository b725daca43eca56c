"""Repetition: a large block of values holds the same ones over and over, so that few are drawn and computed.

Rules
-----
- A block is what a rank holds in a step. Its positions are numbered sample by sample: the sample times the
  spatial size, plus the spatial position. In a block of more than `REPEATS_ABOVE` elements a position holds
  what its number modulo the period holds, in all channels; the positions below the period are drawn.
- The period has no factor below 11, so that what goes wrong by a vector, a warp or a block of threads lands
  on another value, and mostly also what goes wrong by a sample or a row of an image.
- A block of one period has shape (1, C, period), whatever the shape of the whole.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from properties.case import Case

T = TypeVar("T", bound=np.generic)
Shape = tuple[int, int, int]
"""Samples, channels and positions of a sample."""

REPEATS_ABOVE = 1 << 17
_ELEMENTS, _LEAST = 1 << 16, 1009
_SMALL_FACTORS = 2 * 3 * 5 * 7
_SAMPLES_ONE_BY_ONE = 256


def period(case: Case, rank: int) -> int:
    """Return how many positions of the rank's blocks are drawn: all of a small one."""
    count = case.count_of(rank)
    if count * case.channels <= REPEATS_ABOVE:
        return count
    found = max(_LEAST, _ELEMENTS // case.channels)
    while math.gcd(found, _SMALL_FACTORS) > 1:
        found -= 1
    return min(count, found)


def repeated(block: NDArray[T], shape: Shape) -> NDArray[T]:
    """Return a block of one period (1, C, period) as the whole one, of this shape; a whole one as it is.

    A period may be as long as the whole, which has another shape all the same. An expanded one, (1, C, 1),
    stays so.
    """
    n, c, positions = shape
    held, count = block.shape[0] * block.shape[2], n * positions
    if block.shape == shape or held <= 1:
        return block
    line = np.empty((c, count), block.dtype)
    full = count // held * held
    line[:, :full].reshape(c, -1, held)[...] = block.reshape(c, 1, held)
    line[:, full:] = block.reshape(c, held)[:, : count - full]
    return np.ascontiguousarray(line.reshape(c, n, positions).transpose(1, 0, 2))


def times(count: int, held: int) -> NDArray[np.float64]:
    """Return how often each of the `held` positions occurs among `count`, (held,)."""
    often, rest = divmod(count, held) if held else (0, 0)
    found = np.full(held, float(often))
    found[:rest] += 1.0
    return found


def extremes(block: NDArray[T], held: int) -> tuple[NDArray[T], NDArray[T]]:
    """Return the least and the greatest value at each position of a period, each (period, C); NaN if any is.

    Args:
        block: (N, C, positions), a whole block.
        held: The period.
    """
    n, c, positions = block.shape
    if n > _SAMPLES_ONE_BY_ONE:
        rows = block.transpose(0, 2, 1).reshape(n * positions, c)
        full = len(rows) // held * held
        table = rows[:full].reshape(-1, held, c)
        low, high = table.min(axis=0), table.max(axis=0)
        rest = len(rows) - full
        low[:rest], high[:rest] = np.minimum(low[:rest], rows[full:]), np.maximum(high[:rest], rows[full:])
        return low, high
    low, high = np.empty((c, held), block.dtype), np.empty((c, held), block.dtype)
    seen = 0
    for sample in block:
        start = 0
        while start < positions:
            place = seen % held
            size = min(positions - start, held - place)
            part, where = sample[:, start : start + size], slice(place, place + size)
            if seen < held:
                low[:, where] = high[:, where] = part
            else:
                np.minimum(low[:, where], part, out=low[:, where])
                np.maximum(high[:, where], part, out=high[:, where])
            start, seen = start + size, seen + size
    return low.T, high.T

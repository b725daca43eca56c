"""Repetition: a large block of values holds the same ones over and over, so that few are drawn and computed.

Rules
-----
- A block is what a rank holds in a step. Its positions are numbered sample by sample: the sample times the
  spatial size, plus the spatial position. Where a rank of a case holds more than `REPEATS_ABOVE` elements a
  position holds what its number modulo the period holds, in all channels; the positions below the period are
  drawn.
- The period is a prime from 13 on, so that what goes wrong by a vector, a warp or a block of threads lands on
  another value, and mostly also what goes wrong by a sample or a row of an image.
- A block of one period has shape (1, C, period), whatever the shape of the whole.
- What a subject makes of such a block is given back folded (`fold`): of all elements that lie at a place of
  the period the least and the greatest. What must hold of every element, a distance from one expected value,
  holds of all if it holds of those two; so all are judged, and few travel.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from properties.case import Case

T = TypeVar("T", bound=np.generic)
Shape = tuple[int, int, int]
"""Samples, channels and positions of a sample."""

REPEATS_ABOVE = 1 << 17
_PERIODS = ((64, 1021), (256, 251), (1024, 61), (2048, 31), (4096, 13))
"""Channels, and the period of as many at most: a prime, with which a period has at most 2^16 elements.

Few, since each is a program of the reference's (`reference.padding`)."""


def is_large(case: Case) -> bool:
    """Return whether the blocks of a case repeat: a rank holds more than `REPEATS_ABOVE` elements."""
    return case.channels * max(case.count_of(rank) for rank in range(case.world_size)) > REPEATS_ABOVE


def period(case: Case, rank: int) -> int:
    """Return how many positions of the rank's blocks are drawn: all where nothing repeats.

    In a large case the blocks of small ranks repeat, too, if they hold two periods.
    """
    count = case.count_of(rank)
    held = next(held for channels, held in _PERIODS if case.channels <= channels)
    return held if count >= 2 * held and is_large(case) else count


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


def fold(block: NDArray[Any], held: int) -> NDArray[np.int64]:
    """Return where the elements lie by which all of a block that repeats are judged, (rows, C).

    One row for each place of the period and end: first where the least value of the place is, then the
    greatest; where any is NaN, both are one. If not all of the block is finite, a third row has the smallest
    magnitude, NaN left aside: whatever is finite at the place shows there.

    Args:
        block: (N, C, positions), whole, of a dtype that numpy can order.
        held: The period.
    """
    n, c, positions = block.shape
    rows = block.transpose(0, 2, 1).reshape(n * positions, c)
    numbers = occurrences(n * positions, held)
    table = rows[numbers]
    ends = [table.argmin(axis=0), table.argmax(axis=0)]
    if not np.isfinite(table).all():
        ends.append(np.where(np.isnan(table), np.inf, np.abs(table)).argmin(axis=0))
    places = np.arange(held)[:, None]
    return np.concatenate([numbers[end, places] for end in ends])


def occurrences(count: int, held: int) -> NDArray[np.int64]:
    """Return the positions that hold the same, (times, held); a place that occurs once less repeats one."""
    numbers = np.arange(-(-count // held) * held)
    numbers[numbers >= count] -= held
    return numbers.reshape(-1, held)

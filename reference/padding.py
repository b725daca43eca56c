"""Shards: how the values of ranks of different sizes lie in one padded array.

A rank's positions are cut into shards of `length` positions, each shard belongs to one rank, and the mapped
axis of `reference.batchnorm` runs over the shards of a process group: since sums and counts travel together,
a pmean over shards equals a pmean over ranks, while the padding is less than one shard a rank (padding by
rank would cost ranks x the largest rank).

The bucket sizes are few, since each is a program to compile once a machine (3 s) and to load once a process
(0.1 s). Nearly all default cases lie in one of `COMMON`: a size is left out where the next one costs a few
milliseconds more in a hundred cases. What is in none of them is padded by the general rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LENGTHS = (8, 64)
_SHARDS = (4, 16, 64, 256, 1136)
_FEW_SHARDS = 64
_CHANNELS = (1, 8, 24, 72, 136)
_RANKS = (8, 64)
_REPEATED = {64: 64, 256: 16, 1024: 8, 2048: 4, 4096: 4}
"""Channels of blocks that repeat, and the least shards for so many: what four ranks hold of a period."""


class Bucket(NamedTuple):
    """The padded sizes that a program is compiled for: shards, positions a shard, channels, ranks.

    With `repeats` each position stands for as many as the mask says, in place of one or none. What is
    `narrowed` is read in a dtype of less precision than it is stored in.
    """

    shards: int
    length: int
    channels: int
    ranks: int
    repeats: bool = False
    narrowed: bool = False


COMMON = tuple(
    Bucket(shards, length, channels, _RANKS[0])
    for shards, length, channels in (
        *((4, 8, 8), (16, 8, 8), (4, 8, 136), (4, 8, 24), (64, 8, 8), (16, 8, 136), (16, 8, 24)),
        *((256, 64, 1), (64, 64, 8), (64, 64, 1), (1136, 64, 1), (16, 64, 8), (64, 8, 24), (64, 8, 72)),
        (16, 64, 24),
    )
)
"""The buckets of nearly all default cases, the commonest first."""
REPEATED = tuple(
    Bucket(shards, _LENGTHS[-1], channels, _RANKS[0], repeats=True) for channels, shards in _REPEATED.items()
)
"""Those of nearly all large ones."""


class Layout(NamedTuple):
    """Where each rank's positions lie.

    Attributes:
        bucket: The padded sizes.
        starts: First position of each rank in the array of shards x length positions.
        counts: Positions of each rank that lie there.
        mask: (shards, length), True where a position is real; with `bucket.repeats` how many it stands for.
        owner: (shards,), the rank that each shard belongs to; `bucket.ranks` for an unused shard.
    """

    bucket: Bucket
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    mask: NDArray[np.bool_] | Floats
    owner: NDArray[np.int32]


def layout(counts: Sequence[int], channels: int, *, times: Sequence[Floats] | None = None) -> Layout:
    """Return the layout for ranks that hold `counts` positions of `channels` channels each.

    Args:
        counts: Positions of each rank.
        channels: Their channels.
        times: How many each position stands for, (count,) of each rank; None for one.

    Large cases are padded less than small ones: they are few, and what is padded costs as much as the rest;
    but what repeats is never large.
    """
    bucket = _bucket(counts, channels, repeats=times is not None)
    length = bucket.length
    used = [-(-n // length) for n in counts]
    owner = np.full(bucket.shards, bucket.ranks, np.int32)
    mask: NDArray[Any] = np.zeros((bucket.shards, length), np.float64 if times else np.bool_)
    starts, shard = [], 0
    for rank, (n, shards) in enumerate(zip(counts, used, strict=True)):
        owner[shard : shard + shards] = rank
        mask.reshape(-1)[shard * length : shard * length + n] = times[rank] if times else True
        starts.append(shard * length)
        shard += shards
    return Layout(bucket, tuple(starts), tuple(counts), mask, owner)


def _bucket(counts: Sequence[int], channels: int, *, repeats: bool) -> Bucket:
    by_length = {length: sum(-(-n // length) for n in counts) for length in _LENGTHS}
    ranks = _at_least(len(counts), _RANKS, factor=2)
    fit = [b for b in COMMON if by_length[b.length] <= b.shards and channels <= b.channels]
    if fit and not repeats:
        return min(fit, key=lambda b: b.shards * b.length * b.channels)._replace(ranks=ranks)
    if repeats:
        length, padded = _LENGTHS[-1], _at_least(channels, tuple(_REPEATED), factor=2)
        shards = _at_least(by_length[length], (_REPEATED.get(padded, 4),), factor=2)
        return Bucket(shards, length, padded, ranks, repeats)
    length = next((size for size in _LENGTHS if by_length[size] <= _FEW_SHARDS), _LENGTHS[-1])
    large = by_length[length] > _SHARDS[-1]
    return Bucket(
        _at_least(by_length[length], _SHARDS, factor=1.25),
        length,
        -(-channels // 8) * 8 if large and channels > 1 else _at_least(channels, _CHANNELS, factor=2),
        ranks,
    )


def pack(where: Layout, values: Sequence[Floats]) -> Floats:
    """Return the ranks' arrays, each (N, C, positions), as one padded array (shards, length, C)."""
    shards, length, channels = where.bucket[:3]
    packed = np.zeros((shards * length, channels))
    for start, count, array in zip(where.starts, where.counts, values, strict=True):
        if count:
            n, c, positions = array.shape
            packed[start : start + count, :c].reshape(n, positions, c)[...] = array.transpose(0, 2, 1)
    return packed.reshape(shards, length, channels)


def lines(where: Layout, packed: Floats, rank: int, channels: int) -> Floats:
    """Return the rank's part of (shards, length, C) as (positions, channels)."""
    start, count = where.starts[rank], where.counts[rank]
    return packed.reshape(-1, packed.shape[-1])[start : start + count, :channels]


def unpack(where: Layout, packed: Floats, rank: int, shape: tuple[int, ...]) -> Floats:
    """Return the rank's part of (shards, length, C) in the logical shape (N, C, *spatial)."""
    n, c = shape[0], shape[1]
    if where.counts[rank] == 0:
        return np.zeros(shape)
    return lines(where, packed, rank, c).reshape(n, -1, c).transpose(0, 2, 1).reshape(shape)


def _at_least(size: int, sizes: tuple[int, ...], *, factor: float) -> int:
    """Return the smallest bucket size that holds `size`; beyond the table, the last one times powers."""
    for candidate in sizes:
        if size <= candidate:
            return candidate
    candidate = sizes[-1]
    while candidate < size:
        candidate = int(candidate * factor)
    return candidate

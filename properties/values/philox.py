"""Words: counter-based random words, those of few places and those of whole tensors.

Rules
-----
- A place is (position, channel, sample, last), with the rank and the step in the last; its four words
  depend on it and on the seed only.
- Imported by the ranks: neither torch, jax nor hypothesis here.

Theory of operation
-------------------
Philox4x32-7 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011) maps a counter of four
words under a key, the seed, to four words. Positions come in tiles of 256 and samples in tiles of 4096.
Beyond the first tile the words of an element are made from those of its place in the first one: multiplied by
an odd word and added to another, both of its tile and channel, modulo 2^32, and the upper half folded into
the lower. That is one to one, so that they stay uniform and independent within a tile, and leaves no
correlation between tiles. A large tensor costs some dozen operations an element, not Philox's hundred.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Halves = NDArray[np.uint32]

TILE_SAMPLES, TILE_POSITIONS = 1 << 12, 1 << 8
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 7
_CHUNK = 1 << 14
_TILE_TAG = 2**31 + 16


def philox(counter: tuple[Words, Words, Words, Words], seed: int) -> tuple[Words, Words, Words, Words]:
    """Return the four 32-bit words of Philox4x32-7 for arrays of counters (broadcast) under a 64-bit key."""
    shape = np.broadcast_shapes(*(word.shape for word in counter))
    even, odd = np.empty((2, *shape), np.uint64), np.empty((2, *shape), np.uint64)
    even[0], odd[0], even[1], odd[1] = counter
    ones = [1] * len(shape)
    factors = _MULTIPLIERS.reshape(2, *ones)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    keys = [((k0 + k * _WEYL[0]) & 0xFFFFFFFF, (k1 + k * _WEYL[1]) & 0xFFFFFFFF) for k in range(_ROUNDS)]
    for key in np.array(keys, np.uint64).reshape(_ROUNDS, 2, *ones):
        product = (even * factors)[::-1]
        even, odd = (product >> _SHIFT) ^ odd ^ key, product & _LOW
    return even[0], odd[0], even[1], odd[1]


def words_at(
    seed: int, position: Words, channel: Words, sample: Words, last: Words
) -> tuple[Words, Words, Words, Words]:
    """Return the words of the elements at these places."""
    rows, columns = np.uint64(TILE_SAMPLES), np.uint64(TILE_POSITIONS)
    beyond = (position >= columns) | (sample >= rows)
    if not beyond.any():
        return philox((position, channel, sample, last), seed)
    first = philox((position % columns, channel, sample % rows, last), seed)
    tile = philox((position // columns + np.uint64(_TILE_TAG), channel, sample // rows, last), seed)
    pairs = zip(first, _maps(tile), strict=True)
    a, b, c, d = (np.where(beyond, _moved(word, *pair), word) for word, pair in pairs)
    return a, b, c, d


def _maps(tile: Sequence[Words]) -> list[tuple[Halves, Halves]]:
    """Return the odd factor and the summand of each of a tile's words."""
    a, b, c, d = (word.astype(np.uint32) for word in tile)
    return [(factor | np.uint32(1), summand) for factor, summand in ((a, b), (b, c), (c, d), (d, a))]


def _moved(words: Words | Halves, factor: Halves, summand: Halves) -> Halves:
    """Return words of the first tile as those of another one."""
    moved = words.astype(np.uint32) * factor + summand
    return moved ^ (moved >> np.uint32(16))


Slices = tuple[slice, slice]
"""Samples and positions."""


def tiles(seed: int, shape: tuple[int, int, int], *, last: int) -> Iterator[tuple[Slices, list[Halves]]]:
    """Yield the words of a block of this shape (N, C, positions), piece by piece.

    A piece is at most a tile, and as small as fits a cache.
    """
    n, c, positions = shape
    if not n * positions:
        return
    down, across = -(-n // TILE_SAMPLES), -(-positions // TILE_POSITIONS)
    channels, rest = np.arange(c, dtype=np.uint64)[:, None], np.full((1, 1, 1), last, np.uint64)
    maps = _maps(philox((_axis(across, _TILE_TAG), channels, _axis(down)[:, None, None], rest), seed))
    width, height = min(positions, TILE_POSITIONS), min(n, TILE_SAMPLES)
    rows = max(1, _CHUNK // max(1, c * width))
    for start in range(0, height, rows):
        size = min(height - start, rows)
        words = philox((_axis(width), channels, _axis(size, start)[:, None, None], rest), seed)
        first = [word.astype(np.uint32) for word in words]
        for i, j in np.ndindex(down, across):
            top, left = i * TILE_SAMPLES + start, j * TILE_POSITIONS
            bottom, right = min(n, top + size), min(positions, left + width)
            if bottom > top:
                part = [word[: bottom - top, :, : right - left] for word in first]
                if i or j:
                    pairs = [tuple(one[i, :, j, None] for one in pair) for pair in maps]
                    part = [_moved(word, *pair) for word, pair in zip(part, pairs, strict=True)]
                yield (slice(top, bottom), slice(left, right)), part


def _axis(size: int, start: int = 0) -> Words:
    return np.arange(start, start + size, dtype=np.uint64)

"""Values: every element of every tensor of a case, as a pure function of the case's choices.

Rules
-----
- An element's value depends on (seed, step, rank, sample, channel, position) only, never on the sizes of
  the tensor: shrinking a case keeps the surviving elements.
- Only Philox words, integers and powers of two: numpy's distributions change between versions, these
  do not, so a stranger's case replays bit for bit.
- Values are returned as float64 that the case's dtype represents exactly; each process casts without error.
- Imported by the ranks: neither torch, jax nor hypothesis here.

Theory of operation
-------------------
Philox4x32-7 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011) maps the counter
(position, channel, sample, rank + 64 step) under the key (seed) to four words. The first two make the input's
element, the last two the cotangent's: a triangular variate on (-2, 2), scaled and shifted by what the family
draws for the channel from counters that no element uses (position >= 2^31). A call for few counters costs
as much as one for thousands, so the small blocks of a case, each of a rank and step, share one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from properties.case import Case, Dtype, Family

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 7
_CHUNK = 1 << 14
_SMALL = 1 << 12
_CHANNEL_TAG, _RANK_TAG, _PARAMETER_TAG, _BUFFER_TAG = (2**31 + k for k in range(4))
_MANTISSA_BITS: dict[Dtype, int] = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
_LARGEST: dict[Dtype, float] = {
    "float64": float(np.finfo(np.float64).max),
    "float32": float(np.finfo(np.float32).max),
    "float16": 65504.0,
    "bfloat16": (2.0 - 2.0**-7) * 2.0**127,
}


def philox(counter: tuple[Words, Words, Words, Words], seed: int) -> tuple[Words, Words, Words, Words]:
    """Return the four 32-bit words of Philox4x32-7 for arrays of counters (broadcast) under a 64-bit key."""
    x0, x1, x2, x3 = counter
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(_ROUNDS):
        a, b = _MULTIPLIERS[0] * x0, _MULTIPLIERS[1] * x2
        x0, x1 = (b >> _SHIFT) ^ x1 ^ np.uint64(k0), b & _LOW
        x2, x3 = (a >> _SHIFT) ^ x3 ^ np.uint64(k1), a & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return x0, x1, x2, x3


def round_to(values: Floats, dtype: Dtype) -> Floats:
    """Return float64 `values` rounded to nearest even in `dtype`, as float64; overflow gives infinity."""
    if dtype == "float64":
        return values
    if dtype in ("float32", "float16"):
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(np.dtype(dtype)).astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), np.nan, rounded.view(np.float32).astype(np.float64))


@dataclass(frozen=True, slots=True)
class Parameters:
    """Initial parameters and buffers of a case, each of shape (C,), exact in the case's param_dtype."""

    weight: Floats
    bias: Floats
    running_mean: Floats
    running_var: Floats


@lru_cache(maxsize=4)
def parameters(case: Case) -> Parameters:
    """Return the initial weight, bias and running buffers, the same on every rank."""
    ones, zeros = np.ones(case.channels), np.zeros(case.channels)
    if not case.random_parameters:
        return Parameters(np.ldexp(ones, case.affine_exponent), zeros, zeros, ones)
    a, b, c, _ = _channel_words(case, _PARAMETER_TAG, step=0)
    d, e, _, _ = _channel_words(case, _BUFFER_TAG, step=0)
    magnitude = 0.25 + 1.75 * _unit(a)
    weight = np.where(b % np.uint64(8) == 0, 0.0, np.where(b % np.uint64(2) == 0, -magnitude, magnitude))
    bias = 4.0 * _unit(c) - 2.0
    scale = case.affine_exponent
    variance = np.ldexp(0.25 + 3.75 * _unit(e), _variance_exponents(case))
    return Parameters(
        weight=np.ldexp(round_to(weight, case.param_dtype), scale),
        bias=np.ldexp(round_to(bias, case.param_dtype), scale),
        running_mean=round_to(4.0 * _unit(d) - 2.0, case.param_dtype),
        running_var=round_to(variance, case.param_dtype),
    )


def _variance_exponents(case: Case) -> NDArray[np.int64]:
    """Return the binary exponents by which the initial running variance is scaled, (C,).

    In the family `tiny_spread` it is as small as the batch's, which it would hide otherwise.
    """
    tiny = np.full(case.channels, case.values == "tiny_spread")
    if case.last_values:
        tiny[-1] = case.last_values == "tiny_spread"
    if not tiny.any():
        return np.zeros(case.channels, np.int64)
    _, spread = _family_scale(case, "tiny_spread", _channel_words(case, _CHANNEL_TAG, step=0))
    exponents = np.maximum(2 * (np.frexp(spread)[1] - 1), -12 if case.param_dtype == "float16" else -100)
    return np.where(tiny, exponents, 0)


Block = tuple[int, int]
"""A rank and a step."""


def drawn(case: Case, ranks: Sequence[int]) -> dict[Block, tuple[Floats, Floats]]:
    """Return input and cotangent of every step on these ranks, as `tensors` returns them, by (rank, step)."""
    blocks = [(rank, step) for rank in ranks for step in range(len(case.steps))]
    sizes = {rank: math.prod(_shape(case, rank)) for rank in ranks}
    small = [block for block in blocks if 0 < sizes[block[0]] <= _SMALL]
    words = _words_of_blocks(case, small) if len(small) > 1 else {}
    return {(rank, k): _tensors(case, rank, k, words.get((rank, k))) for rank, k in blocks}


def tensors(case: Case, rank: int, *, step: int) -> tuple[Floats, Floats]:
    """Return input and cotangent of one rank and step, each (N, C, positions), exact in the case's dtype.

    The spatial sizes are flattened. With an expanded cotangent the cotangent has shape (1, C, 1).
    """
    return _tensors(case, rank, step, None)


def _shape(case: Case, rank: int) -> tuple[int, int, int]:
    return case.batches[rank], case.channels, math.prod(case.spatial_of(rank))


def _words_of_blocks(case: Case, blocks: Sequence[Block]) -> dict[Block, tuple[Words, Words, Words, Words]]:
    """Return the words of every element of these blocks, each (N, C, positions)."""
    shapes = [_shape(case, rank) for rank, _ in blocks]
    sizes = [math.prod(shape) for shape in shapes]
    index = np.concatenate([np.indices(shape).reshape(3, -1) for shape in shapes], axis=1).astype(np.uint64)
    last = np.repeat(np.array([rank + 64 * step for rank, step in blocks], np.uint64), sizes)
    words = philox((index[2], index[1], index[0], last), case.seed)
    stops = np.cumsum(sizes)
    return {
        block: (
            words[0][stop - size : stop].reshape(shape),
            words[1][stop - size : stop].reshape(shape),
            words[2][stop - size : stop].reshape(shape),
            words[3][stop - size : stop].reshape(shape),
        )
        for block, shape, size, stop in zip(blocks, shapes, sizes, stops, strict=True)
    }


def _tensors(
    case: Case, rank: int, step: int, known: tuple[Words, Words, Words, Words] | None
) -> tuple[Floats, Floats]:
    n, c, positions = _shape(case, rank)
    center, spread = _channel_scale(case, rank, step=step)
    x, g = np.empty((n, c, positions)), np.empty((n, c, positions))
    expanded = case.cotangent_layout == "expanded"
    rows = max(1, _CHUNK // max(1, c * positions)) if known is None else n
    for start in range(0, n, rows):
        stop = min(n, start + rows)
        words = known or _element_words(case, rank, step, slice(start, stop), c, positions)
        x[start:stop] = _input(case, words, center, spread)
        if not expanded:
            g[start:stop] = _triangular(words[2], words[3])
    if expanded:
        words = _element_words(case, rank, step, slice(0, 1), c, 1)
        g = _triangular(words[2], words[3])
    x = round_to(x, case.dtype)
    largest = _LARGEST[case.dtype]
    np.clip(x, -largest, largest, out=x)
    if step == 0 and n:
        _place_specials(case, rank, x)
    return x, np.ldexp(round_to(g, case.dtype), case.cotangent_exponent)


def digest(*arrays: Floats) -> str:
    """Return sixteen hexadecimal digits that identify the values, to compare what two processes drew."""
    state = hashlib.blake2b(digest_size=8)
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _unit(words: Words) -> Floats:
    return np.ldexp((words >> np.uint64(8)).astype(np.float64), -24)


def _triangular(first: Words, second: Words) -> Floats:
    return (
        np.ldexp(
            (first >> np.uint64(8)).astype(np.float64) + (second >> np.uint64(8)).astype(np.float64), -23
        )
        - 2.0
    )


def _element_words(
    case: Case, rank: int, step: int, samples: slice, channels: int, positions: int
) -> tuple[Words, Words, Words, Words]:
    sample = np.arange(samples.start, samples.stop, dtype=np.uint64)[:, None, None]
    channel = np.arange(channels, dtype=np.uint64)[None, :, None]
    position = np.arange(positions, dtype=np.uint64)[None, None, :]
    zeros = np.zeros((sample.size, channels, positions), np.uint64)
    last = zeros + np.uint64(rank + 64 * step)
    return philox((zeros + position, zeros + channel, zeros + sample, last), case.seed)


@lru_cache(maxsize=8)
def _channel_table(
    case: Case, steps: int
) -> tuple[dict[tuple[int, int, int], int], tuple[Words, Words, Words, Words]]:
    """Return the channel words of so many steps, each (rows, C), and the row of every (tag, rank, step)."""
    tags = [(_PARAMETER_TAG, 0), (_BUFFER_TAG, 0), (_CHANNEL_TAG, 0)]
    tags += [(_RANK_TAG, rank) for rank in range(case.world_size if case.rank_offset else 0)]
    keys = [(tag, rank, step) for step in range(steps) for tag, rank in tags]
    tag = np.array([tag for tag, _, _ in keys], np.uint64)[:, None]
    last = np.array([rank + 64 * step for _, rank, step in keys], np.uint64)[:, None]
    zeros = np.zeros((len(keys), case.channels), np.uint64)
    channel = np.arange(case.channels, dtype=np.uint64)
    words = philox((zeros + tag, zeros + channel, zeros, zeros + last), case.seed)
    return {key: row for row, key in enumerate(keys)}, words


def _channel_words(case: Case, tag: int, *, step: int, rank: int = 0) -> tuple[Words, Words, Words, Words]:
    rows, words = _channel_table(case, max(len(case.steps), step + 1))
    row = rows[tag, rank, step]
    return words[0][row], words[1][row], words[2][row], words[3][row]


def _channel_scale(case: Case, rank: int, *, step: int) -> tuple[Floats, Floats]:
    """Return center and spread of the channels on one rank, each (C,); a spread is a power of two or zero."""
    words = _channel_words(case, _CHANNEL_TAG, step=step)
    center, spread = _family_scale(case, case.values, words)
    if case.last_values:
        last = tuple(word[-1:] for word in words)
        center[-1:], spread[-1:] = _family_scale(case, case.last_values, last)
    if case.rank_offset:
        words = _channel_words(case, _RANK_TAG, step=step, rank=rank)
        unit = np.where(spread > 0, spread, 1.0)
        with np.errstate(over="ignore"):
            center = center + unit * (case.rank_offset * _triangular(words[0], words[1]))
    return center, spread


def _family_scale(case: Case, family: Family, words: tuple[Words, ...]) -> tuple[Floats, Floats]:
    """Return center and spread of the channels that `words` are of, in `family`."""
    a, b, c, _ = words
    center = 4.0 * _unit(a) - 2.0
    pick = (b >> np.uint64(4)).astype(np.int64)
    fine = _MANTISSA_BITS[case.dtype] - 4  # A mean of 2^fine spreads leaves the spread some 32 steps.
    match family:
        case "ordinary" | "mixed":
            spread = np.ldexp(1.0, pick % 3 - 1)
        case "large_offset":
            spread = np.ones(len(a))
            exponent = np.where(pick % 16 < 15, 4 + pick % 6, 10 + pick % 4)
            sign = np.where(c % np.uint64(2) == 0, -1.0, 1.0)
            center = sign * np.ldexp(1.0 + _unit(a), np.minimum(exponent, fine))
        case "tiny_spread":
            root = math.frexp(case.eps or 1e-5)[1] // 2
            spread = np.ldexp(1.0, root - pick % 8)
            limit = np.ldexp(spread, min(fine, 10))
            center = np.where(c % np.uint64(2) == 0, 0.0, np.clip(center, -limit, limit))
        case "constant":
            spread = np.zeros(len(a))
        case "subnormal":
            spread = np.full(len(a), _tiny_scale(case.dtype))
            center = np.zeros(len(a))
        case "near_overflow":
            low, high = _huge_exponents(case.dtype)
            rarity = 2 if case.dtype == "float16" else 16  # Its squares do not overflow in float32.
            spread = np.ldexp(1.0, np.where(pick % rarity == 0, high, low))
            center = np.zeros(len(a))
    return center, spread


def _tiny_scale(dtype: Dtype) -> float:
    return {"float16": 2.0**-17, "bfloat16": 2.0**-130, "float32": 2.0**-130, "float64": 2.0**-500}[dtype]


def _huge_exponents(dtype: Dtype) -> tuple[int, int]:
    return {"float16": (12, 14), "bfloat16": (58, 126), "float32": (58, 126), "float64": (500, 1022)}[dtype]


def _input(case: Case, words: tuple[Words, Words, Words, Words], center: Floats, spread: Floats) -> Floats:
    t = _triangular(words[0], words[1])
    if case.values == "mixed":
        t = np.ldexp(t, (words[0] & np.uint64(0x7)).astype(np.int64) - 4)
    with np.errstate(over="ignore"):
        return center[None, :, None] + spread[None, :, None] * t


def _place_specials(case: Case, rank: int, x: Floats) -> None:
    n, c, positions = x.shape
    for special in case.specials:
        if special.rank % case.world_size == rank:
            at = (special.sample % n, special.channel % c, special.position % positions)
            x[at] = {
                "nan": math.nan,
                "inf": math.inf,
                "-inf": -math.inf,
                "zero": 0.0,
                "huge": _LARGEST[case.dtype] / 4,
            }[special.kind]

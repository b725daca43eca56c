"""Values: every element of every tensor of a case, as a pure function of the case's choices.

Rules
-----
- An element's value depends on (seed, step, rank, sample, channel, position) only, never on the sizes of
  the tensor: shrinking a case keeps the surviving elements. Large tensors repeat
  (`properties.values.period`): beyond the first period the sizes say which of those elements comes again.
- Only Philox words, integers and powers of two: numpy's distributions change between versions, these
  do not, so a stranger's case replays bit for bit.
- Values are returned as float64 that the case's dtype represents exactly; each process casts without error.
- Imported by the ranks: neither torch, jax nor hypothesis here.

Theory of operation
-------------------
The words of an element (`properties.values.philox`) are a function of the seed and of (position, channel,
sample, rank + 64 step). The first two make the input's element, the last two the cotangent's: a triangular
variate on (-2, 2), scaled and shifted by what the family draws for the channel from counters that no element
uses (position >= 2^31). A call for few counters costs as much as one for thousands, so the small blocks of a
case, each of a rank and step, share one.
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
from properties.values.period import period, repeated
from properties.values.philox import TILE_POSITIONS, Halves, Words, philox, tiles, words_at

Floats = NDArray[np.float64]

_SMALL = 1 << 12
_FOLD = 1 << 12
_CHANNEL_TAG, _RANK_TAG, _PARAMETER_TAG, _BUFFER_TAG = (2**31 + k for k in range(4))
_MANTISSA_BITS: dict[Dtype, int] = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
_LARGEST: dict[Dtype, float] = {
    "float64": float(np.finfo(np.float64).max),
    "float32": float(np.finfo(np.float32).max),
    "float16": 65504.0,
    "bfloat16": (2.0 - 2.0**-7) * 2.0**127,
}


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
        variance = np.ldexp(ones, _limited(case, np.full(case.channels, case.variance_exponent)))
        return Parameters(np.ldexp(ones, case.affine_exponent), zeros, zeros, variance)
    weight, bias = _affine(case, step=0)
    d, e, _, _ = _channel_words(case, _BUFFER_TAG, step=0)
    variance = np.ldexp(0.25 + 3.75 * _unit(e), _variance_exponents(case))
    return Parameters(
        weight=weight,
        bias=bias,
        running_mean=round_to(4.0 * _unit(d) - 2.0, case.param_dtype),
        running_var=round_to(variance, case.param_dtype),
    )


@lru_cache(maxsize=16)
def affine(case: Case, step: int) -> tuple[Floats, Floats]:
    """Return weight and bias in `step`, each (C,): those of the last step until then that wrote them."""
    written = max((k for k in range(step + 1) if case.steps[k].rewritten), default=None)
    if written is None:
        first = parameters(case)
        return first.weight, first.bias
    return _affine(case, step=written)


def _affine(case: Case, *, step: int) -> tuple[Floats, Floats]:
    """Return the weight and bias that are drawn for `step`."""
    a, b, c, _ = _channel_words(case, _PARAMETER_TAG, step=step)
    magnitude = 0.25 + 1.75 * _unit(a)
    weight = np.where(b % np.uint64(8) == 0, 0.0, np.where(b % np.uint64(2) == 0, -magnitude, magnitude))
    pair = (round_to(values, case.param_dtype) for values in (weight, 4.0 * _unit(c) - 2.0))
    weight, bias = (np.ldexp(values, case.affine_exponent) for values in pair)
    return weight, bias


def _variance_exponents(case: Case) -> NDArray[np.int64]:
    """Return the binary exponents by which the initial running variance is scaled, (C,).

    In the family `tiny_spread` it is as small as the batch's, which it would hide otherwise.
    """
    exponents = np.full(case.channels, case.variance_exponent)
    tiny = np.full(case.channels, case.values == "tiny_spread")
    if case.last_values:
        tiny[-1] = case.last_values == "tiny_spread"
    if tiny.any():
        _, spread = _family_scale(case, "tiny_spread", _channel_words(case, _CHANNEL_TAG, step=0))
        exponents = np.where(tiny, exponents + 2 * (np.frexp(spread)[1] - 1), exponents)
    return _limited(case, exponents)


def _limited(case: Case, exponents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return exponents of a variance that the buffers' dtype can hold, with room for what is added."""
    low, high = (-12, 12) if case.param_dtype == "float16" else (-100, 64)
    return np.clip(exponents, low, high)


Block = tuple[int, int]
"""A rank and a step."""


def drawn(
    case: Case, ranks: Sequence[int], *, channels_last: bool = False
) -> dict[Block, tuple[Floats, Floats]]:
    """Return input and cotangent of every step on these ranks by (rank, step), each (N, C, positions).

    Of a block that repeats it is one period, (1, C, period), and an expanded cotangent is (1, C, 1). With
    `channels_last` the channels of a position lie side by side in memory.
    """
    blocks = [(rank, step) for rank in ranks for step in range(len(case.steps))]
    small = _small_tensors(case, [block for block in blocks if 0 < math.prod(_shape(case, *block)) <= _SMALL])
    return {
        block: small.get(block) or _large_tensors(case, *block, channels_last=channels_last)
        for block in blocks
    }


def complete(case: Case, ranks: Sequence[int]) -> dict[Block, tuple[Floats, Floats]]:
    """Return what `tensors` returns of every step on these ranks, by (rank, step)."""
    return {
        (rank, step): _whole(case, rank, step, *pair) for (rank, step), pair in drawn(case, ranks).items()
    }


def tensors(case: Case, rank: int, *, step: int) -> tuple[Floats, Floats]:
    """Return input and cotangent of one rank and step, each (N, C, positions), exact in the case's dtype.

    The spatial sizes are flattened. With an expanded cotangent the cotangent has shape (1, C, 1).
    """
    return _whole(case, rank, step, *_large_tensors(case, rank, step))


def _whole(case: Case, rank: int, step: int, x: Floats, g: Floats) -> tuple[Floats, Floats]:
    shape = _shape(case, rank, step)
    return repeated(x, shape), repeated(g, shape)


def _shape(case: Case, rank: int, step: int) -> tuple[int, int, int]:
    sized = case.at(step)
    return sized.batches[rank], case.channels, math.prod(sized.spatial_of(rank))


def _small_tensors(case: Case, blocks: Sequence[Block]) -> dict[Block, tuple[Floats, Floats]]:
    """Return the tensors of these blocks, all elements at once: a call costs more than an element."""
    if not blocks:
        return {}
    shapes = [_shape(case, *block) for block in blocks]
    sizes = [math.prod(shape) for shape in shapes]
    sample, channel, position = np.concatenate([_places(shape) for shape in shapes], axis=1)
    block = np.repeat(np.arange(len(blocks)), sizes)
    lasts = np.array([rank + 64 * step for rank, step in blocks], np.uint64)
    words = words_at(case.seed, position, channel, sample, lasts[block])
    scales = np.array([_channel_scale(case, rank, step=step) for rank, step in blocks])
    center, spread = scales[block, :, channel.astype(np.intp)].T
    parts = np.cumsum(sizes)[:-1]
    x = np.split(_input(case, words, center, spread), parts)
    if case.cotangent_layout == "expanded":
        g = list(_expanded(case, lasts))
    else:
        drawn = np.split(_cotangent(case, words), parts)
        g = [one.reshape(shape) for one, shape in zip(drawn, shapes, strict=True)]
    for (rank, step), one, shape in zip(blocks, x, shapes, strict=True):
        _place_specials(case, rank, step, one.reshape(shape))
    return {
        block: (one.reshape(shape), other)
        for block, shape, one, other in zip(blocks, shapes, x, g, strict=True)
    }


def _expanded(case: Case, lasts: Words) -> Floats:
    """Return the expanded cotangents of these blocks, (blocks, 1, C, 1)."""
    zero, channels = np.zeros(1, np.uint64), np.arange(case.channels, dtype=np.uint64)
    words = philox((zero, channels, zero, lasts[:, None]), case.seed)
    return _cotangent(case, words)[:, None, :, None]


@lru_cache(maxsize=32)
def _places(shape: tuple[int, int, int]) -> Words:
    """Return sample, channel and position of every element, (3, elements)."""
    return np.indices(shape).reshape(3, -1).astype(np.uint64)


def _large_tensors(case: Case, rank: int, step: int, *, channels_last: bool = False) -> tuple[Floats, Floats]:
    n, c, positions = _shape(case, rank, step)
    held, count = period(case.at(step), rank), n * positions
    if held < n * positions:
        n, positions = -(-held // positions), min(positions, held)
    last = rank + 64 * step
    x, g = (
        np.empty((n, positions, c)).transpose(0, 2, 1) if channels_last else np.empty((n, c, positions))
        for _ in range(2)
    )
    if x.size:
        center, spread = (scale[None, :, None] for scale in _channel_scale(case, rank, step=step))
        for (samples, places), words in tiles(case.seed, (n, c, positions), last=last):
            x[samples, :, places] = _input(case, words, center, spread)
            g[samples, :, places] = _cotangent(case, words)
    if held < count:
        x, g = (_first(array, held) for array in (x, g))
    _place_specials(case, rank, step, x)
    if case.cotangent_layout == "expanded":
        (g,) = _expanded(case, np.array([last], np.uint64))
    return x, g


def _first(array: Floats, held: int) -> Floats:
    """Return the first positions of (N, C, positions), sample by sample, as (1, C, held)."""
    n, c, positions = array.shape
    flat = array.transpose(0, 2, 1).reshape(n * positions, c)[:held]
    return flat.reshape(1, held, c).transpose(0, 2, 1)


def digest(*arrays: Floats) -> str:
    """Return sixteen hexadecimal digits that identify the values, to compare what two processes drew."""
    state = hashlib.blake2b(digest_size=8)
    for array in arrays:
        state.update(_folded(array).data)
    return state.hexdigest()


def _folded(array: Floats) -> Floats | Words:
    """Return a small array as it is, and of a large one (N, C, positions) sums of its bits, in any layout."""
    if array.size <= 2 * _FOLD:
        return np.ascontiguousarray(array)
    sums = np.add.reduce(array.view(np.uint64), axis=0)
    if sums.size > _FOLD:
        whole = sums.shape[1] // TILE_POSITIONS * TILE_POSITIONS
        table = sums[:, :whole].reshape(len(sums), -1, TILE_POSITIONS)
        sums = np.concatenate([np.add.reduce(table, axis=1), sums[:, whole:]], axis=1)
    return np.concatenate([np.array(array.shape, np.uint64), sums.ravel()])


def _unit(words: Words) -> Floats:
    return (words >> np.uint64(8)).astype(np.float64) * 2.0**-24


def _triangular(first: Words | Halves, second: Words | Halves) -> Floats:
    """Return first + second, of 24 bits each, as numbers from -2 to 2."""
    eight = first.dtype.type(8)
    return ((first >> eight) + (second >> eight)).astype(np.float64) * 2.0**-23 - 2.0


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
    center, spread = _common_scale(case, step)
    if case.rank_offset:
        words = _channel_words(case, _RANK_TAG, step=step, rank=rank)
        unit = np.where(spread > 0, spread, 1.0)
        with np.errstate(over="ignore"):
            center = center + unit * (case.rank_offset * _triangular(words[0], words[1]))
    return center, spread


@lru_cache(maxsize=16)
def _common_scale(case: Case, step: int) -> tuple[Floats, Floats]:
    """Return center and spread of the channels, each (C,), before the ranks' offsets."""
    words = _channel_words(case, _CHANNEL_TAG, step=step)
    center, spread = _family_scale(case, case.values, words)
    if case.last_values:
        last = tuple(word[-1:] for word in words)
        center[-1:], spread[-1:] = _family_scale(case, case.last_values, last)
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


def _input(case: Case, words: Sequence[Words | Halves], center: Floats, spread: Floats) -> Floats:
    """Return elements of the input, rounded to the dtype and at most its largest number."""
    t = _triangular(words[0], words[1])
    if case.values == "mixed":
        t = np.ldexp(t, (words[0] & words[0].dtype.type(7)).astype(np.int64) - 4)
    with np.errstate(over="ignore"):
        x = round_to(center + spread * t, case.dtype)
    largest = _LARGEST[case.dtype]
    return np.minimum(np.maximum(x, -largest, out=x), largest, out=x)


def _cotangent(case: Case, words: Sequence[Words | Halves]) -> Floats:
    """Return elements of the cotangent."""
    g = round_to(_triangular(words[2], words[3]), case.dtype)
    return np.ldexp(g, case.cotangent_exponent) if case.cotangent_exponent else g


def _place_specials(case: Case, rank: int, step: int, x: Floats) -> None:
    """Put the special elements of this rank and step into `x`; of a block that repeats, in every period."""
    n, c, positions = _shape(case, rank, step)
    for special in case.specials if step == 0 and x.size else ():
        if special.rank % case.world_size == rank:
            number = special.sample % n * positions + special.position % positions
            sample, position = divmod(number % (x.shape[0] * x.shape[2]), x.shape[2])
            x[sample, special.channel % c, position] = {
                "nan": math.nan,
                "inf": math.inf,
                "-inf": -math.inf,
                "zero": 0.0,
                "huge": _LARGEST[case.dtype] / 4,
            }[special.kind]

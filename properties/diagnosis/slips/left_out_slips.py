"""Slips that leave values of a rank out of its moments: tails of blocks, ends of rows, samples.

Those who leave values out differ in what they do besides: whether the count still has them, whether the mean,
the squares or both lack them, and how the squares are taken. Each way is one of `WAYS`, on one rank's values
or, where the mean is reduced before the squares are taken, on those of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from properties.diagnosis.plain_batchnorm import Floats, Moments, Step, merged, moments_of
from properties.diagnosis.slips.slip import BLOCKS, Slip

Kept = Callable[[Floats], Floats]
"""Returns the values (C, k) of (N, C, positions) that are not left out."""
Squares = Literal["two-pass", "one-pass", "corrected"]

_CLASSES = (26, 22, 0)
_FAMILY = ("values-left-out", "leaves some values of a rank out of its statistics")
SAMPLES = {"first": 0, "last": -1, "second": 1, "eighth": 7}
VECTORS = (2, 4, 8, 16)


def own_moments(step: Step, slot: int) -> Moments:
    """Return a rank's right moments."""
    return moments_of(step.rows[slot])


def over_true_count(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    """Return the merge of parts with other counts, whose squares are divided by the true one in the end."""
    whole = merged(step, slot, parts)
    if not step.total:
        return whole
    return Moments(step.total, whole.mean, whole.var * whole.n / step.total)


# What is left out


def rows_of(x: Floats) -> Floats:
    """Return (N, C, positions) as (C, values), samples in their order."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def without_tail(block: int, *, alone: bool) -> Kept:
    """Return values without a last block that is not full; `alone`: also where there is no other block."""

    def kept(x: Floats) -> Floats:
        rows = rows_of(x)
        n = rows.shape[1]
        full = n // block * block
        return rows[:, : full if full or alone else n]

    return kept


def without_ends_of_rows(block: int) -> Kept:
    """Return values without the last positions of each sample, where they do not fill a vector."""
    return lambda x: rows_of(x[:, :, : x.shape[2] // block * block])


def without_sample(which: int) -> Kept:
    """Return values without one sample, counted from the end if negative."""

    def kept(x: Floats) -> Floats:
        index = which if which >= 0 else len(x) + which
        return rows_of(np.delete(x, index, axis=0) if 0 <= index < len(x) else x)

    return kept


def zeroed(kept: Kept, values: Floats) -> Floats:
    """Return (N, C, positions) with zeros where the values that are left out lie."""
    numbers = np.arange(values[:, 0].size, dtype=np.float64).reshape(values[:, :1].shape)
    written = np.isin(numbers, kept(numbers))
    return np.where(written, values, 0.0)


# What else is done


def _out(kept: Kept) -> dict[str, Any]:
    return {"moments": lambda step, slot: moments_of(kept(step.x[slot]))}


def _out_but_counted_in_squares(kept: Kept) -> dict[str, Any]:
    return {**_out(kept), "merged": over_true_count}


def _out_and_counted(kept: Kept) -> dict[str, Any]:
    """Return moments whose sums are divided by the count of all, with right means inside."""

    def moments(step: Step, slot: int) -> Moments:
        n, found = float(step.counts[slot]), moments_of(kept(step.x[slot]))
        return Moments(n, *(part * found.n / max(n, 1.0) for part in (found.mean, found.var)))

    return {"moments": moments}


def _taken(
    step: Step, slots: Sequence[int], kept: Kept, *, mean: bool, squares: bool, way: Squares
) -> Moments:
    """Return the moments of some members, over the count of all their values.

    Args:
        step: What they know.
        slots: The members.
        kept: What is not left out.
        mean: It lacks the values that are left out.
        squares: They do.
        way: Squares about the mean, raw ones less the squared mean, or about the mean and less what the
            deviations add up to.
    """
    n = float(sum(step.counts[slot] for slot in slots))
    if not n:
        return Moments(0.0, np.zeros(step.case.channels), np.zeros(step.case.channels))
    all_of = [step.rows[slot] for slot in slots]
    some = [kept(step.x[slot]) for slot in slots]
    center = sum(x.sum(axis=1) for x in (some if mean else all_of)) / n
    about = np.zeros_like(center) if way == "one-pass" else center
    deviations = [x - about[:, None] for x in (some if squares else all_of)]
    var = sum((d**2).sum(axis=1) for d in deviations) / n
    if way == "one-pass":
        var = var - center**2
    elif way == "corrected":
        var = var - (sum(d.sum(axis=1) for d in deviations) / n) ** 2
    return Moments(n, np.asarray(center), np.asarray(var))


def _own(kept: Kept, **taken: Any) -> dict[str, Any]:
    return {"moments": lambda step, slot: _taken(step, [slot], kept, **taken)}


def _of_all(kept: Kept, **taken: Any) -> dict[str, Any]:
    """Return a merge that takes the squares about the mean of all ranks."""

    def merge(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        del slot
        return _taken(step, range(len(parts)), kept, **taken)

    return {"moments": own_moments, "merged": merge}


Way = tuple[str, str, Callable[[Kept], dict[str, Any]]]


def _ways(id: str, words: str, **taken: Any) -> tuple[Way, ...]:
    """Return a way on one rank's values, and on those of all."""
    return tuple(
        (f"{id}{end}", words, lambda kept, change=change: change(kept, **taken))
        for end, change in (("", _own), ("-of-all", _of_all))
    )


WAYS: tuple[Way, ...] = (
    ("left-out", "out of its statistics", _out),
    ("left-out-and-counted", "out of its sums, and counts them", _out_and_counted),
    (
        "left-out-but-counted-in-squares",
        "out of its sums, and divides the squares by the count of all",
        _out_but_counted_in_squares,
    ),
    *_ways("left-out-of-mean", "out of its mean alone", mean=True, squares=False, way="two-pass"),
    *_ways("left-out-of-squares", "out of its squares alone", mean=False, squares=True, way="two-pass"),
    *_ways(
        "left-out-of-both",
        "out of its mean and of the squares about it, and counts them in both",
        mean=True,
        squares=True,
        way="two-pass",
    ),
    (
        "left-out-of-raw-sums",
        "out of its sums of x and of x^2, and counts them",
        lambda kept: _own(kept, mean=True, squares=True, way="one-pass"),
    ),
    *_ways(
        "left-out-of-corrected",
        "out of its mean and of squares that are corrected by the sum of the deviations, and counts them",
        mean=True,
        squares=True,
        way="corrected",
    ),
)
"""Name, words and lines of each; what ends with -of-all is of one kind with what does not."""


def _left_out(stem: str, whose: str, kept: Callable[[int], Kept], numbers: Sequence[int]) -> list[Slip]:
    """Return a slip for each way and number, which `whose` has as {}."""
    return [
        Slip(
            id=f"{stem}-{way}-{number}",
            words=f"leaves {whose.format(f' of {number}')} {words}",
            classes=_CLASSES,
            part="forward",
            change=change(kept(number)),
            kind=f"{stem}-{way.removesuffix('-of-all')}",
            kind_words=f"leaves {whose.format('')} {words}",
            family=_FAMILY,
        )
        for way, words, change in WAYS
        for number in numbers
    ]


def _sample_left_out(name: str, which: int) -> list[Slip]:
    return [
        Slip(
            id=f"{name}-sample-{way}",
            words=f"leaves the {name} sample of a rank {words}",
            classes=(22, 26, 0),
            part="forward",
            change=change(without_sample(which)),
            kind=f"{name}-sample-{way.removesuffix('-of-all')}",
            kind_words=f"leaves the {name} sample of a rank {words}",
            family=_FAMILY,
        )
        for way, words, change in WAYS
    ]


LEFT_OUT: tuple[Slip, ...] = (
    *_left_out(
        "tail",
        "the last values of a rank, where they do not fill a block{},",
        lambda block: without_tail(block, alone=False),
        BLOCKS,
    ),
    *_left_out(
        "tail-alone",
        "the last values of a rank, where they do not fill a block{}, and all of fewer,",
        lambda block: without_tail(block, alone=True),
        BLOCKS,
    ),
    *_left_out(
        "ends-of-rows",
        "the last positions of each sample, where they do not fill a vector{},",
        without_ends_of_rows,
        VECTORS,
    ),
    *(one for name, which in SAMPLES.items() for one in _sample_left_out(name, which)),
)

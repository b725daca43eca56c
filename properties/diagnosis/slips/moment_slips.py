"""Slips in a rank's own moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from properties.diagnosis.plain_batchnorm import Floats, Moments, Step, merged, moments_of, up_to
from properties.diagnosis.slips.left_out_slips import LEFT_OUT, over_true_count, own_moments
from properties.diagnosis.slips.slip import Slip, by_block, by_half, slip
from properties.values.elements import round_to


def padded(rows: Floats, size: int) -> Floats:
    """Return (C, values) with zeros up to that size."""
    return np.concatenate([rows, np.zeros((len(rows), size - rows.shape[1]))], axis=1)


def _full(n: int, block: int) -> int:
    """Return the values of full blocks that hold n; of the next power of two if the block is 0."""
    return up_to(n) if block == 0 else -(-n // block) * block


def _padding_counts(block: int) -> Callable[[Step, int], Moments]:
    def moments(step: Step, slot: int) -> Moments:
        rows = step.rows[slot]
        return moments_of(padded(rows, _full(rows.shape[1], block) if rows.shape[1] else 0))

    return moments


def _full_count(block: int) -> Callable[[Step, int], Moments]:
    """Return moments about a mean whose divisor is that of full blocks; the padding is not squared."""

    def moments(step: Step, slot: int) -> Moments:
        rows = step.rows[slot]
        n = rows.shape[1]
        if not n:
            return moments_of(rows)
        full = _full(n, block)
        mean = rows.sum(axis=1) / full
        return Moments(full, mean, ((rows - mean[:, None]) ** 2).sum(axis=1) / full)

    return moments


def _full_blocks(block: int) -> Callable[[Step, int], Moments]:
    """Return the merge of a rank's blocks, the last of which counts as full; the padding is not squared."""

    def moments(step: Step, slot: int) -> Moments:
        rows = step.rows[slot]
        parts = []
        for start in range(0, rows.shape[1], block):
            part = rows[:, start : start + block]
            mean = part.sum(axis=1) / block
            parts.append(Moments(block, mean, ((part - mean[:, None]) ** 2).sum(axis=1) / block))
        return merged(step, slot, parts) if parts else moments_of(rows)

    return moments


def _padding_in_squares(block: int) -> Callable[[Step, int], Moments]:
    """Return moments with the distance of the padding from the mean of the last block."""

    def moments(step: Step, slot: int) -> Moments:
        rows = step.rows[slot]
        found, n = moments_of(rows), rows.shape[1]
        if not n:
            return found
        last = n % block if block and n > block else n
        tail = rows[:, n - last :].mean(axis=1) if last else 0.0
        lanes = _full(n, block) - n
        return found._replace(var=found.var + lanes * tail**2 / n)

    return moments


def _padding_about_own_mean(block: int) -> Callable[[Step, int], Moments]:
    def moments(step: Step, slot: int) -> Moments:
        rows = step.rows[slot]
        found, n = moments_of(rows), rows.shape[1]
        return found._replace(var=found.var + (_full(n, block) - n) * found.mean**2 / n) if n else found

    return moments


def _padding_about_whole_mean(block: int) -> Callable[[Step, int, Sequence[Moments]], Moments]:
    def merge(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        whole = merged(step, slot, parts)
        lanes = sum(_full(x.shape[1], block) - x.shape[1] for x in step.rows if x.shape[1])
        return whole._replace(var=whole.var + lanes * whole.mean**2 / whole.n) if whole.n else whole

    return merge


def _another_count(count: Callable[[Step, int], float]) -> Callable[[Step, int], Moments]:
    def moments(step: Step, slot: int) -> Moments:
        return moments_of(step.rows[slot], max(count(step, slot), 0.0))

    return moments


def count_without_last_axis(step: Step, slot: int) -> float:
    """Return a member's values a channel, of one index of the last axis."""
    shape, n = step.case.shape_of(step.members[slot]), float(step.counts[slot])
    return n / max(shape[-1], 1) if len(shape) > 2 else n


def count_of_samples(step: Step, slot: int) -> float:
    """Return a member's samples."""
    return float(step.x[slot].shape[0])


def count_of_positions(step: Step, slot: int) -> float:
    """Return the positions of a member's samples."""
    return float(step.x[slot].shape[2]) if step.counts[slot] else 0.0


def _within_samples(step: Step, slot: int) -> Moments:
    """Return moments whose variance is the mean of the samples' own."""
    found, x = moments_of(step.rows[slot]), step.x[slot]
    return found._replace(var=x.var(axis=2).mean(axis=0)) if found.n else found


def _of_shortest(step: Step, slot: int) -> Moments:
    least = min(len(x) for x in step.x)
    x = step.x[slot][:least]
    return moments_of(x.transpose(1, 0, 2).reshape(x.shape[1], -1))


def _tail_twice(block: int) -> Callable[[Step, int], Moments]:
    """Return moments in which the last block begins earlier, so that it is full: some values count twice."""

    def moments(step: Step, slot: int) -> Moments:
        rows = step.rows[slot]
        n = rows.shape[1]
        if n <= block or n % block == 0:
            return moments_of(rows)
        again = rows[:, n - block : n // block * block]
        mean = (rows.sum(axis=1) + again.sum(axis=1)) / n
        squares = sum(((part - mean[:, None]) ** 2).sum(axis=1) for part in (rows, again))
        return Moments(n, mean, np.asarray(squares / n))

    return moments


def _columns(step: Step, slot: int) -> Moments:
    x = step.x[slot]
    return moments_of(np.ascontiguousarray(x.reshape(-1, x.shape[1]).T))


def _raw_square(step: Step, slot: int) -> Moments:
    found = moments_of(step.rows[slot])
    return found._replace(var=found.var + found.mean**2)


def _rounded(step: Step, slot: int) -> Moments:
    found = moments_of(step.rows[slot])
    dtype = step.half
    return found._replace(mean=round_to(found.mean, dtype), var=round_to(found.var, dtype))


def _rounded_mean(step: Step, slot: int) -> Moments:
    found = moments_of(step.rows[slot])
    return found._replace(mean=round_to(found.mean, step.half))


def _about_rounded_mean(step: Step, slot: int) -> Moments:
    rows = step.rows[slot]
    found = moments_of(rows)
    if not found.n:
        return found
    mean = round_to(found.mean, step.half)
    return Moments(found.n, mean, ((rows - mean[:, None]) ** 2).mean(axis=1))


def _half_squares(step: Step, slot: int) -> Moments:
    rows = step.rows[slot]
    found = moments_of(rows)
    squares = round_to((rows - found.mean[:, None]) ** 2, step.half)
    return found._replace(var=squares.mean(axis=1)) if found.n else found


def _half_deviations(step: Step, slot: int) -> Moments:
    rows = step.rows[slot]
    found = moments_of(rows)
    squares = round_to(round_to(rows - found.mean[:, None], step.half) ** 2, step.half)
    return found._replace(var=squares.mean(axis=1)) if found.n else found


def _half_raw_squares(step: Step, slot: int) -> Moments:
    rows = step.rows[slot]
    found = moments_of(rows)
    if not found.n:
        return found
    return found._replace(var=np.maximum(round_to(rows**2, step.half).mean(axis=1) - found.mean**2, 0.0))


def _rows_of_channels(step: Step, slot: int) -> Moments:
    return moments_of(np.ascontiguousarray(step.x[slot]).reshape(step.case.channels, -1))


_TAIL, _PADDING = (26, 22, 0), (0, 22, 26)
_FULL = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_PADDED = ("padding-in-statistics", "has the padding of a last block in its statistics")
OWN: tuple[Slip, ...] = (
    slip(
        "count-without-last-axis",
        "divides a rank's sums by a count that leaves out the last axis",
        (0, 22, 26),
        "forward",
        moments=_another_count(count_without_last_axis),
    ),
    slip(
        "count-of-samples",
        "divides a rank's sums by its samples, not by its values",
        (0, 22, 26),
        "forward",
        moments=_another_count(count_of_samples),
    ),
    slip(
        "count-of-positions",
        "divides a rank's sums by its positions, not by its values",
        (0, 22, 26),
        "forward",
        moments=_another_count(count_of_positions),
    ),
    slip(
        "columns-for-channels",
        "takes statistics of a reshape to (-1, C), whose columns mix channels",
        (8, 19),
        "forward",
        moments=_columns,
    ),
    slip(
        "rows-for-channels",
        "takes statistics of a reshape to (C, -1) without a transposition, whose rows mix channels",
        (8, 19),
        "forward",
        moments=_rows_of_channels,
    ),
    slip(
        "square-not-centred",
        "takes E[x^2] for the variance: the squared mean is not subtracted",
        (0, 12),
        "forward",
        moments=_raw_square,
    ),
    *by_half(
        "statistics-in-half",
        "rounds a rank's mean and variance to {}",
        (13, 10),
        "forward",
        moments=_rounded,
    ),
    *by_half(
        "mean-sent-in-half",
        "rounds a rank's mean to {} before the merge",
        (13, 10),
        "forward",
        moments=_rounded_mean,
    ),
    *by_half(
        "squares-about-mean-in-half",
        "rounds a rank's mean to {} before the squares are taken about it",
        (13, 10),
        "forward",
        moments=_about_rounded_mean,
    ),
    *by_half(
        "squares-in-half",
        "squares the distances from a rank's mean in {}, where they may overflow",
        (13, 10, 12),
        "forward",
        moments=_half_squares,
    ),
    *by_half(
        "deviations-in-half",
        "takes the distances from a rank's mean, and their squares, in {}, where they may overflow",
        (13, 10, 12),
        "forward",
        moments=_half_deviations,
    ),
    *by_half(
        "raw-squares-in-half",
        "squares its input in {}, where it may overflow, and subtracts the squared mean",
        (13, 10, 12),
        "forward",
        moments=_half_raw_squares,
    ),
    slip(
        "between-samples-left-out",
        "averages the variances within samples: what the samples' means differ by is missing",
        (3, 1, 0),
        "forward",
        moments=_within_samples,
    ),
    slip(
        "samples-of-the-shortest",
        "takes statistics of as many samples on every rank as the shortest has",
        (1, 22, 26),
        "forward",
        moments=_of_shortest,
    ),
    *by_block(
        "tail-counted-twice",
        "begins the last block{} earlier, so that it is full, and adds some values up twice",
        _TAIL,
        "forward",
        lambda block: {"moments": _tail_twice(block)},
    ),
    *by_block(
        "padding-counted",
        "counts the padding of a last block{} as values of zero",
        _PADDING,
        "forward",
        lambda block: {"moments": _padding_counts(block)},
        _FULL,
        family=_PADDED,
    ),
    *by_block(
        "padding-counted-in-mean",
        "divides a rank's sum by the size of full blocks{}: every block counts as full",
        _PADDING,
        "forward",
        lambda block: {"moments": _full_count(block), "merged": over_true_count},
        _FULL,
        family=_PADDED,
    ),
    *by_block(
        "full-blocks-counted",
        "counts every block{} as full, in blocks that are merged one by one",
        _PADDING,
        "forward",
        lambda block: {"moments": _full_blocks(block), "merged": over_true_count},
        _FULL[1:],
        family=_PADDED,
    ),
    *by_block(
        "padding-squared",
        "adds the squared distance of the padding of a last block{} from the mean: a mask is missing",
        _PADDING,
        "forward",
        lambda block: {"moments": _padding_in_squares(block)},
        _FULL,
        family=_PADDED,
    ),
    *by_block(
        "padding-squared-about-own-mean",
        "adds the squared distance of the padding of a last block{} from the rank's mean: a mask is missing",
        _PADDING,
        "forward",
        lambda block: {"moments": _padding_about_own_mean(block)},
        family=_PADDED,
    ),
    *by_block(
        "padding-squared-about-whole-mean",
        "adds the squared distance of the padding of a last block{} from the mean of all ranks: a mask is "
        "missing",
        _PADDING,
        "forward",
        lambda block: {"moments": own_moments, "merged": _padding_about_whole_mean(block)},
        family=_PADDED,
    ),
    *LEFT_OUT,
)

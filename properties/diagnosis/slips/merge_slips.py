"""Slips in the merge of the ranks' moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from properties.diagnosis.plain_batchnorm import Floats, Moments, Step, merged, moments_of
from properties.diagnosis.slips.moment_slips import (
    count_of_positions,
    count_of_samples,
    count_without_last_axis,
    padded,
)
from properties.diagnosis.slips.pair_slips import PAIRS
from properties.diagnosis.slips.slip import Slip, by_half, slip
from properties.values.elements import round_to


def _parts(step: Step, change: Callable[[Step, int], Moments]) -> list[Moments]:
    return [change(step, slot) for slot in range(len(step.members))]


def _kept_padding(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    del parts
    longest = max(rows.shape[1] for rows in step.rows)
    return merged(step, slot, [moments_of(padded(rows, longest)) for rows in step.rows])


def _padding_in_all_squares(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    whole = merged(step, slot, parts)
    longest = max(rows.shape[1] for rows in step.rows)
    lanes = sum(longest - rows.shape[1] for rows in step.rows)
    return whole._replace(var=whole.var + lanes * whole.mean**2 / max(whole.n, 1.0))


def _between(weigh: Callable[[float, float, int], float]) -> Callable[..., Moments]:
    """Return a merge whose between-rank term has other weights: of a part's count, all, and the ranks."""

    def change(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        whole = merged(step, slot, parts)
        if not whole.n:
            return whole
        within = sum(part.n * part.var for part in parts) / whole.n
        terms = sum(weigh(part.n, whole.n, len(parts)) * (part.mean - whole.mean) ** 2 for part in parts)
        return whole._replace(var=np.asarray(within + terms))

    return change


def _raw(step: Step, slot: int, parts: Sequence[Moments]) -> tuple[Moments, Floats]:
    whole = merged(step, slot, parts)
    return whole, whole.var + whole.mean**2


def _own_mean_squared(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    whole, raw = _raw(step, slot, parts)
    return whole._replace(var=raw - parts[slot].mean ** 2)


def _clamped(change: Callable[..., Moments]) -> Callable[..., Moments]:
    """Return a merge whose variance is never negative."""

    def clamped(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        whole = change(step, slot, parts)
        return whole._replace(var=np.maximum(whole.var, 0.0))

    return clamped


def _raw_over(count: Callable[[Step, int], float], *, clamp: bool) -> Callable[..., Moments]:
    """Return E[x^2] - E[x]^2 of sums that are divided by another count."""

    def change(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        whole, raw = _raw(step, slot, parts)
        n = sum(count(step, each) for each in range(len(parts)))
        if not n:
            return whole
        mean, square = whole.mean * whole.n / n, raw * whole.n / n
        var = square - mean**2
        return Moments(n, mean, np.maximum(var, 0.0) if clamp else var)

    return change


def _not_centred(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    whole, raw = _raw(step, slot, parts)
    return whole._replace(var=raw)


def _own_squares(*, but: int | None) -> Callable[..., Moments]:
    """Return a merge in which a member divides its own squares by the count of all; member `but` does not."""

    def change(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        whole = merged(step, slot, parts)
        if slot == but or not whole.n:
            return whole
        own = parts[slot]
        return whole._replace(var=own.n * (own.var + (own.mean - whole.mean) ** 2) / whole.n)

    return change


def _own_variance(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    return merged(step, slot, parts)._replace(var=parts[slot].var)


def _own_mean(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    return merged(step, slot, parts)._replace(mean=parts[slot].mean)


def _pairwise(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    """Return a merge in pairs that drops whoever has no partner in a round."""
    left = list(parts)
    while len(left) > 1:
        left = [merged(step, slot, left[i : i + 2]) for i in range(0, len(left) - 1, 2)]
    return left[0]


def _weighed(factor: Callable[[int, int], float]) -> Callable[..., Moments]:
    """Return a merge in which the part in each slot counts so many times."""

    def change(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        counted = [part._replace(n=part.n * factor(index, len(parts))) for index, part in enumerate(parts)]
        return merged(step, slot, counted)

    return change


def _over_one_total(factor: Callable[[int, int], float]) -> Callable[..., Moments]:
    """Return sums of x and x^2 in which each slot counts so many times, divided by the count of all."""

    def change(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        whole = merged(step, slot, parts)
        if not whole.n:
            return whole
        times = [part.n * factor(index, len(parts)) / whole.n for index, part in enumerate(parts)]
        mean = sum(each * part.mean for each, part in zip(times, parts, strict=True))
        raw = sum(each * (part.var + part.mean**2) for each, part in zip(times, parts, strict=True))
        return whole._replace(mean=np.asarray(mean), var=np.asarray(raw - mean**2))

    return change


def _greatest(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    whole = merged(step, slot, parts)
    if not whole.n:
        return whole
    total = np.max([part.n * part.mean for part in parts], axis=0) / whole.n
    raw = np.max([part.n * (part.var + part.mean**2) for part in parts], axis=0) / whole.n
    return whole._replace(mean=total, var=raw - total**2)


def _mean_deviation(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    whole = merged(step, slot, parts)
    if not whole.n:
        return whole
    deviation = sum(part.n * np.sqrt(part.var) for part in parts) / whole.n
    return whole._replace(var=np.asarray(deviation**2))


def _unbiased_parts(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    corrected = [
        part._replace(var=part.var * part.n / (part.n - 1) if part.n > 1 else part.var) for part in parts
    ]
    return merged(step, slot, corrected)


def _half_counts(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    dtype = step.half
    return merged(
        step, slot, [part._replace(n=float(round_to(np.array([part.n]), dtype)[0])) for part in parts]
    )


def _half_result(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    whole = merged(step, slot, parts)
    return whole._replace(mean=round_to(whole.mean, step.half), var=round_to(whole.var, step.half))


def _merge(id: str, words: str, classes: tuple[int, ...], change: Callable[..., Moments]) -> Slip:
    return slip(id, words, classes, "forward", merged=change)


def _replaced(chosen: Callable[[int, int], int]) -> Callable[..., Moments]:
    """Return the merge of one part that stands in every rank's place: chosen by slot and number of ranks."""

    def change(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        part = parts[chosen(slot, len(parts))]
        return merged(step, slot, [part] * len(parts))

    return change


def _by_samples(*, mean_only: bool) -> Callable[..., Moments]:
    """Return a merge weighed by samples; `mean_only` with the right weights of the squares about it."""

    def change(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        counted = [part._replace(n=float(len(x))) for part, x in zip(parts, step.x, strict=True)]
        found, whole = merged(step, slot, counted), merged(step, slot, parts)
        if not whole.n:
            return whole
        if not mean_only:
            return found._replace(n=whole.n)
        squares = sum(part.n * (part.var + (part.mean - found.mean) ** 2) for part in parts)
        return Moments(whole.n, found.mean, np.asarray(squares / whole.n))

    return change


def _own_count_times_ranks(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    """Return sums over the rank's own count times the ranks, with squares about the mean they give."""
    n = parts[slot].n * len(parts)
    if not n:
        return merged(step, slot, parts)
    mean = np.asarray(sum(part.n * part.mean for part in parts) / n)
    squares = sum(part.n * (part.var + (part.mean - mean) ** 2) for part in parts)
    return Moments(n, mean, np.asarray(squares / n))


MERGE: tuple[Slip, ...] = (
    _merge(
        "own-part-for-all",
        "merges the rank's own part as often as there are ranks",
        (4, 15, 19),
        _replaced(lambda slot, ranks: slot),
    ),
    _merge(
        "last-part-for-all",
        "merges the last rank's part as often as there are ranks",
        (4, 19, 21),
        _replaced(lambda slot, ranks: ranks - 1),
    ),
    _merge(
        "weighed-by-samples",
        "weighs the ranks by samples, not by values, also in what their means differ by",
        (1,),
        _by_samples(mean_only=False),
    ),
    _merge(
        "mean-weighed-by-samples",
        "weighs the ranks' means by samples, not by values",
        (1,),
        _by_samples(mean_only=True),
    ),
    _merge(
        "own-count-times-ranks-in-statistics",
        "divides the sums of all ranks by its own count times the ranks",
        (1, 2),
        _own_count_times_ranks,
    ),
    _merge(
        "padding-of-shorter-ranks",
        "counts the zeros that pad shorter ranks to the longest as values",
        (1, 0, 9, 22),
        _kept_padding,
    ),
    _merge(
        "padding-of-shorter-ranks-squared",
        "adds the squared mean for each zero that pads shorter ranks to the longest: a mask is missing",
        (1, 0, 9, 22),
        _padding_in_all_squares,
    ),
    _merge(
        "between-not-counted",
        "adds the squared distances of the ranks' means without their counts",
        (3, 1),
        _between(lambda own, total, ranks: 1.0 / total),
    ),
    _merge(
        "between-by-ranks",
        "averages the squared distances of the ranks' means over the ranks, without their counts",
        (3, 1),
        _between(lambda own, total, ranks: 1.0 / ranks),
    ),
    _merge(
        "between-summed",
        "adds the squared distances of the ranks' means undivided",
        (3, 1),
        _between(lambda own, total, ranks: 1.0),
    ),
    _merge(
        "between-subtracted",
        "subtracts the variance between ranks in place of adding it",
        (3, 20),
        _between(lambda own, total, ranks: -own / total),
    ),
    _merge(
        "between-twice",
        "adds the variance between ranks twice",
        (3,),
        _between(lambda own, total, ranks: 2.0 * own / total),
    ),
    _merge(
        "own-mean-squared",
        "subtracts the square of the rank's own mean from the mean square of all",
        (19, 3, 4, 15),
        _own_mean_squared,
    ),
    _merge(
        "own-mean-squared-and-clamped",
        "subtracts the square of the rank's own mean from the mean square of all",
        (19, 3, 4, 15),
        _clamped(_own_mean_squared),
    ),
    _merge(
        "mean-square-not-centred",
        "takes the mean square of all for the variance: the squared mean is not subtracted",
        (3, 12, 0),
        _not_centred,
    ),
    _merge(
        "own-squares-over-all",
        "divides the rank's own squares by the count of all ranks",
        (15, 3, 4),
        _own_squares(but=None),
    ),
    _merge(
        "squares-of-root-only",
        "divides the rank's own squares by the count of all ranks, but on the first",
        (15, 3, 4),
        _own_squares(but=0),
    ),
    _merge(
        "own-variance", "takes the mean of all ranks and the variance of its own", (4, 3, 15), _own_variance
    ),
    _merge("own-mean", "takes the variance of all ranks and the mean of its own", (4, 15, 19), _own_mean),
    _merge(
        "without-a-partner",
        "drops a rank that has no partner in a round of a merge in pairs",
        (4, 0, 1),
        _pairwise,
    ),
    _merge(
        "ranks-up-to-a-power-of-two",
        "merges no more ranks than a power of two",
        (4, 0, 1),
        lambda step, slot, parts: merged(step, slot, parts[: 1 << (len(parts).bit_length() - 1)]),
    ),
    _merge(
        "first-rank-twice",
        "adds up the first rank's part twice, and its count",
        (1, 0),
        _weighed(lambda index, ranks: 2.0 if index == 0 else 1.0),
    ),
    _merge(
        "last-rank-twice",
        "adds up the last rank's part twice, and its count",
        (1, 0),
        _weighed(lambda index, ranks: 2.0 if index == ranks - 1 else 1.0),
    ),
    _merge(
        "first-rank-sums-twice",
        "adds up the first rank's sums twice, and its count once",
        (1, 0),
        _over_one_total(lambda index, ranks: 2.0 if index == 0 else 1.0),
    ),
    _merge(
        "sums-averaged-over-ranks",
        "averages the ranks' sums in place of adding them up",
        (1, 6, 0),
        _over_one_total(lambda index, ranks: 1.0 / ranks),
    ),
    _merge("greatest-of-sums", "takes the greatest of the ranks' sums for their sum", (0, 1, 19), _greatest),
    _merge(
        "deviations-averaged",
        "averages the ranks' standard deviations",
        (1, 3),
        _mean_deviation,
    ),
    _merge("unbiased-parts", "merges variances that each rank divided by n - 1", (7, 1), _unbiased_parts),
    *PAIRS,
    *(
        _merge(
            f"{name}-of-squares{'-clamped' * clamp}",
            f"divides sums of x and x^2 by a count that {words}",
            (0, 22, 26),
            _raw_over(count, clamp=clamp),
        )
        for name, words, count in (
            ("count-without-last-axis", "leaves out the last axis", count_without_last_axis),
            ("count-of-samples", "is that of the samples", count_of_samples),
            ("count-of-positions", "is that of the positions", count_of_positions),
        )
        for clamp in (False, True)
    ),
    *by_half("rank-counts-in-half", "rounds the counts to {}", (13, 10, 26), "forward", merged=_half_counts),
    *by_half(
        "merged-in-half",
        "rounds mean and variance of all ranks to {}",
        (13, 10),
        "forward",
        merged=_half_result,
    ),
)

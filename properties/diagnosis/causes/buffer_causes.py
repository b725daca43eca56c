"""Causes in the running buffers, and in the count of tracked batches."""

from __future__ import annotations

from typing import Any

import numpy as np

from properties.case import Case
from properties.diagnosis.causes.cause import Cause
from properties.diagnosis.causes.rank_weights import equal, equal_unbiased, equal_with_empty, first
from properties.diagnosis.variant import Merge, by_count, none, own


def _constant(value: float, *, only_none: bool) -> Any:
    return lambda case, tracked, right: value if case.momentum is None or not only_none else right


def _cumulative(shift: int) -> Any:
    def momentum(case: Case, tracked: int, right: float) -> float:
        return 1.0 / max(tracked + shift, 1) if case.momentum is None else right

    return momentum


def _times(count: Any) -> Any:
    return lambda case, k, total: int(count(case, k, total))


def _trains(case: Case, k: int, total: int) -> bool:
    return case.steps[k].mode == "train" and total > 0


def _buffers(id: str, words: str, classes: tuple[int, ...], **change: Any) -> Cause:
    return Cause(id=id, words=words, classes=classes, part="buffers", change=change)


def _uncorrected(n: int, own: int, ranks: int) -> tuple[float, float]:
    del own, ranks
    return n, 0


def _half_bessel(n: int, own: int, ranks: int) -> tuple[float, float]:
    """Return n / (n - 1) as float16 holds it, and 1."""
    del own, ranks
    return (float(np.float16(n) / np.float16(max(n - 1, 1))), 1.0) if n < 65504 else (n, n - 1)


BUFFERS: tuple[Cause, ...] = (
    _buffers("biased-running-var", "tracks the biased variance", (7,), bessel=lambda n, own, ranks: (n, 0)),
    _buffers(
        "local-bessel",
        "corrects the variance by the rank's own count",
        (7, 1),
        bessel=lambda n, own, ranks: (own, own - 1),
    ),
    _buffers(
        "own-count-bessel",
        "corrects the variance by its own count times the ranks",
        (7, 1),
        bessel=lambda n, own, ranks: (own * ranks, own * ranks - 1),
    ),
    _buffers(
        "bessel-by-ranks",
        "corrects the variance by the number of ranks",
        (7,),
        bessel=lambda n, own, ranks: (ranks, ranks - 1),
    ),
    _buffers(
        "inverted-momentum",
        "exchanges momentum and 1 - momentum",
        (17,),
        momentum=lambda case, tracked, m: 1 - m,
    ),
    _buffers(
        "constant-momentum", "always uses a momentum of 0.1", (17,), momentum=_constant(0.1, only_none=False)
    ),
    _buffers(
        "momentum-none-as-0.1", "takes momentum None for 0.1", (17,), momentum=_constant(0.1, only_none=True)
    ),
    _buffers(
        "momentum-none-as-1", "takes momentum None for 1", (17,), momentum=_constant(1.0, only_none=True)
    ),
    _buffers(
        "momentum-none-as-0", "takes momentum None for 0", (17,), momentum=_constant(0.0, only_none=True)
    ),
    _buffers(
        "cumulative-late", "divides the cumulative average by one too many", (17,), momentum=_cumulative(1)
    ),
    _buffers(
        "cumulative-early", "divides the cumulative average by one too few", (17,), momentum=_cumulative(-1)
    ),
    _buffers("no-update", "does not update the buffers", (17, 21), updates=_times(lambda case, k, total: 0)),
    _buffers(
        "lost-update",
        "loses the update of non-contiguous buffers",
        (21,),
        updates=_times(lambda case, k, total: _trains(case, k, total) and not case.strided_buffers),
    ),
    _buffers(
        "first-update-only",
        "updates the buffers in the first step only",
        (24, 17),
        updates=_times(lambda case, k, total: _trains(case, k, total) and k == 0),
    ),
    _buffers(
        "two-updates",
        "updates the buffers twice a step",
        (24,),
        updates=_times(lambda case, k, total: 2 * _trains(case, k, total)),
    ),
    _buffers(
        "one-update-when-recomputed", "does not update the buffers when recomputed", (24,), recomputed=0
    ),
    _buffers("two-updates-when-recomputed", "updates the buffers twice when recomputed", (24,), recomputed=2),
    _buffers(
        "updates-in-evaluation",
        "updates the buffers in evaluation, too",
        (17, 18),
        updates=_times(lambda case, k, total: total > 0),
    ),
    _buffers(
        "empty-batch-updates",
        "updates the buffers with an empty batch",
        (11,),
        updates=_times(lambda case, k, total: case.steps[k].mode == "train"),
    ),
    _buffers("local-buffers", "tracks the rank's own statistics", (15, 4), tracked=Merge(own, own, none)),
    _buffers(
        "local-buffers-by-own-count",
        "tracks the rank's own statistics, by its own count",
        (15, 4),
        tracked=Merge(own, own, none),
        bessel=lambda n, own, ranks: (own, own - 1),
    ),
    _buffers(
        "local-running-mean",
        "tracks the rank's own mean",
        (15, 4),
        tracked=Merge(own, by_count, by_count, by_count),
    ),
    _buffers(
        "first-rank-buffers", "tracks the first rank's statistics", (4,), tracked=Merge(first, first, none)
    ),
    _buffers(
        "equal-weights-in-buffers",
        "tracks the ranks' statistics without their counts",
        (1,),
        tracked=Merge(equal, equal, equal),
    ),
    _buffers(
        "averaged-buffers",
        "averages the ranks' own buffers",
        (3,),
        tracked=Merge(equal_with_empty, equal_with_empty, none),
    ),
    _buffers(
        "averaged-buffers-of-filled",
        "averages the own buffers of ranks with values",
        (3,),
        tracked=Merge(equal, equal, none),
    ),
    _buffers(
        "no-between-variance-tracked",
        "tracks the variance without what the ranks' means differ by",
        (3,),
        tracked=Merge(by_count, by_count, none),
    ),
    _buffers("exchanged-buffers", "exchanges running mean and variance", (19,), exchanged=True),
    _buffers("invstd-for-variance", "tracks invstd as the variance", (19,), tracks="invstd"),
    _buffers(
        "rounded-steps",
        "rounds each step of the update to the buffers' dtype",
        (13,),
        contract={"buffer_update": "in_dtype"},
    ),
    _buffers(
        "invstd-for-variance-uncorrected",
        "tracks invstd as the variance, uncorrected",
        (19,),
        tracks="invstd",
        bessel=_uncorrected,
    ),
    _buffers("eps-in-buffer", "tracks var + eps", (16,), tracks="eps"),
    _buffers(
        "eps-in-buffer-uncorrected", "tracks var + eps, uncorrected", (16,), tracks="eps", bessel=_uncorrected
    ),
    _buffers("half-bessel", "corrects the variance in half precision", (7, 13), bessel=_half_bessel),
    _buffers(
        "single-value-uncorrected",
        "tracks the biased variance where a rank has one value",
        (7,),
        bessel=lambda n, own, ranks: (n, n - 1 if own > 1 else 0),
    ),
    _buffers(
        "momentum-0-as-0.1",
        "takes momentum 0 for 0.1",
        (17,),
        momentum=lambda case, tracked, right: right or 0.1,
    ),
    _buffers(
        "momentum-1-as-none",
        "takes momentum 1 for None",
        (17,),
        momentum=lambda case, tracked, right: 1.0 / tracked if right == 1.0 else right,
    ),
    _buffers(
        "first-rank-updates",
        "updates the buffers on a group's first rank only",
        (15,),
        updates_on=lambda case, rank: rank == case.group_of(rank)[0],
    ),
    _buffers(
        "empty-rank-does-not-update",
        "leaves the buffers of a rank without values alone",
        (15, 9),
        updates_on=lambda case, rank: case.count_of(rank) > 0,
    ),
    _buffers(
        "averaged-unbiased-buffers",
        "averages the ranks' unbiased variances",
        (3,),
        tracked=Merge(equal, equal_unbiased, none),
        bessel=_uncorrected,
    ),
)


def _count(id: str, words: str, classes: tuple[int, ...], counted: Any) -> Cause:
    return Cause(id=id, words=words, classes=classes, part="count", change={"counted": counted})


def _is_training(case: Case, k: int, total: int) -> int:
    del total
    return int(case.steps[k].mode == "train")


COUNT: tuple[Cause, ...] = (
    _count("never-counted", "never counts its batches", (17,), lambda case, k, total: 0),
    _count(
        "counted-twice",
        "counts each batch twice",
        (17,),
        lambda case, k, total: 2 * _is_training(case, k, total),
    ),
    _count("counted-in-evaluation", "counts evaluations, too", (17,), lambda case, k, total: 1),
    _count(
        "counted-without-momentum",
        "counts its batches with momentum None only",
        (17,),
        lambda case, k, total: _is_training(case, k, total) * (case.momentum is None),
    ),
    _count(
        "empty-batch-not-counted",
        "does not count an empty batch",
        (11,),
        lambda case, k, total: _is_training(case, k, total) * (total > 0),
    ),
    _count(
        "first-counted-only",
        "counts the first batch only",
        (24, 17),
        lambda case, k, total: _is_training(case, k, total) * (k == 0),
    ),
    Cause(
        id="not-counted-when-recomputed",
        words="does not count a recomputed forward",
        classes=(24,),
        part="count",
        change={"recomputed": 0},
    ),
    Cause(
        id="counted-twice-when-recomputed",
        words="counts a recomputed forward twice",
        classes=(24,),
        part="count",
        change={"recomputed": 2},
    ),
)

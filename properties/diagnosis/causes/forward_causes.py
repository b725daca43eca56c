"""Causes in the forward: which statistics normalise, how, and with which parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from properties.case import Case
from properties.diagnosis.causes.cause import Cause
from properties.diagnosis.causes.rank_weights import (
    but_first,
    but_last,
    but_last_of_total,
    by_samples,
    empty_as_one,
    equal,
    equal_with_empty,
    first,
    ones,
    own_count,
    pairs,
    permuted,
    rounded_counts,
    unbiased,
    world_over_group,
)
from properties.diagnosis.variant import Floats, Merge, by_count, none, own
from properties.values.elements import round_to
from properties.values.misread_layouts import input_as_contiguous, input_like_cotangent

# Parameters: the rows weight, bias, running mean, its error, running variance, its error


def _rows(order: tuple[int, ...]) -> Any:
    return lambda rows: rows[list(order)]


def _changed(row: int, change: Any) -> Any:
    def parameters(rows: Floats) -> Floats:
        rows[row] = change(rows[row])
        return rows

    return parameters


def _tail(limit: int | None) -> Any:
    """Return parameters whose channels from `limit` on (the last power of two if None) are zero."""

    def parameters(rows: Floats) -> Floats:
        start = limit if limit is not None else 1 << (rows.shape[1].bit_length() - 1)
        rows[0, start:] = 0.0
        rows[1, start:] = 0.0
        return rows

    return parameters


def _rounded_eps(case: Case) -> float:
    return float(round_to(np.array([case.eps]), case.dtype)[0])


def _all(weigh: Any) -> dict[str, Any]:
    return {"merge": Merge(weigh, weigh, weigh)}


def _forward(id: str, words: str, classes: tuple[int, ...], **change: Any) -> Cause:
    return Cause(id=id, words=words, classes=classes, part="forward", change=change)


_PARAMETERS: tuple[tuple[str, str, tuple[int, ...], Any], ...] = (
    ("swapped-affine", "swaps weight and bias", (19,), _rows((1, 0, 2, 3, 4, 5))),
    (
        "affine-for-buffers",
        "swaps weight and bias with the running buffers",
        (19,),
        _rows((4, 2, 1, 3, 0, 5)),
    ),
    (
        "affine-for-buffers-in-order",
        "swaps weight and bias with running mean and variance",
        (19,),
        _rows((2, 4, 0, 3, 1, 5)),
    ),
    ("swapped-buffers", "swaps running mean and variance", (19,), _rows((0, 1, 4, 5, 2, 3))),
    ("absolute-weight", "uses |weight|", (20,), _changed(0, np.abs)),
    ("positive-weight", "clamps the weight at zero", (20,), _changed(0, lambda row: np.maximum(row, 0.0))),
    ("no-weight", "ignores the weight", (20,), _changed(0, np.ones_like)),
    ("no-bias", "ignores the bias", (20,), _changed(1, np.zeros_like)),
    (
        "weight-of-next-channel",
        "uses the next channel's weight",
        (19,),
        _changed(0, lambda row: np.roll(row, -1)),
    ),
    (
        "weight-of-previous-channel",
        "uses the previous channel's weight",
        (19,),
        _changed(0, lambda row: np.roll(row, 1)),
    ),
)
"""Parameters that take the place of others: in both modes, in evaluation, or in training only."""


FORWARD: tuple[Cause, ...] = (
    _forward(
        "no-synchronisation",
        "does everything on each rank alone",
        (4,),
        merge=Merge(own, own, none),
        bessel=lambda n, own, ranks: (own, own - 1),
        updates_on=lambda case, rank: case.count_of(rank) > 0,
        cotangent=own_count,
        projection=own_count,
    ),
    _forward("local-statistics", "normalises each rank by its own batch", (4,), merge=Merge(own, own, none)),
    _forward("zero-statistics", "uses zeros for mean and variance", (4,), merge=Merge(none, none, none)),
    _forward("first-rank-statistics", "uses the first rank's statistics on all", (4,), **_all(first)),
    _forward("without-last-rank", "leaves the last rank of a group out", (4,), **_all(but_last)),
    _forward("without-first-rank", "leaves the first rank of a group out", (4,), **_all(but_first)),
    _forward("lost-last-rank", "loses the last rank's sums", (4,), **_all(but_last_of_total)),
    _forward("world-statistics", "ignores the process group", (4,), scope="world"),
    _forward(
        "world-sums-over-group",
        "sums over the world and divides by the group's count",
        (4,),
        scope="world",
        **_all(world_over_group),
    ),
    _forward("equal-weights", "averages the ranks without their counts", (1,), **_all(equal)),
    _forward(
        "equal-weights-with-empty", "averages the ranks, empty ones too", (1, 9), **_all(equal_with_empty)
    ),
    _forward("weights-by-samples", "weighs the ranks by samples, not by values", (1,), **_all(by_samples)),
    _forward(
        "equal-weights-in-variance",
        "weighs the ranks equally in the variance",
        (1,),
        merge=Merge(by_count, equal, equal, equal),
    ),
    _forward(
        "equal-weights-about-mean",
        "weighs the ranks equally in the variance about the right mean",
        (1,),
        merge=Merge(by_count, equal, equal),
    ),
    _forward(
        "equal-weights-in-mean",
        "weighs the ranks equally in the mean",
        (1,),
        merge=Merge(equal, by_count, by_count, by_count),
    ),
    _forward(
        "sum-of-means",
        "sums the ranks' means without a division",
        (1,),
        merge=Merge(ones, by_count, by_count, by_count),
    ),
    _forward(
        "no-between-variance",
        "leaves out what the ranks' means differ by",
        (3,),
        merge=Merge(by_count, by_count, none),
    ),
    _forward(
        "average-of-variances",
        "averages the ranks' means and variances without counts",
        (3, 1),
        merge=Merge(equal, equal, none),
    ),
    _forward(
        "average-of-variances-with-empty",
        "averages means and variances of all ranks, empty ones too",
        (3, 1, 9),
        merge=Merge(equal_with_empty, equal_with_empty, none),
    ),
    _forward(
        "equal-variances",
        "averages the ranks' variances without counts",
        (3, 1),
        merge=Merge(by_count, equal, none),
    ),
    _forward(
        "local-mean", "subtracts the rank's own mean", (4,), merge=Merge(own, by_count, by_count, by_count)
    ),
    _forward("local-variance", "divides by the rank's own deviation", (4,), merge=Merge(by_count, own, none)),
    _forward(
        "unbiased-normalisation",
        "normalises with the unbiased variance",
        (7,),
        merge=Merge(by_count, unbiased, unbiased),
    ),
    _forward("eps-outside-root", "adds eps outside the root", (16,), root="outside"),
    _forward("eps-clamped", "clamps the variance at eps instead of adding it", (16,), root="clamped"),
    _forward("eps-twice", "adds eps twice", (16,), root="twice"),
    _forward("no-eps", "leaves eps out", (16,), root="without"),
    _forward("no-root", "divides by the variance instead of its root", (16, 19), root="inverse"),
    _forward("squared-variance", "divides by the squared variance", (16,), root="squared"),
    _forward(
        "variance-for-invstd", "multiplies by the variance where invstd is meant", (19,), root="identity"
    ),
    *(_forward(name, words, classes, parameters=change) for name, words, classes, change in _PARAMETERS),
    *(
        _forward(
            f"{name}-in-{place}", f"{words} in {place}", classes, parameters=change, parameters_in=(mode,)
        )
        for place, mode in (("evaluation", "eval"), ("training", "train"))
        for name, words, classes, change in _PARAMETERS
        if (name, mode) != ("swapped-buffers", "train")  # training does not use them
    ),
    _forward(
        "variance-for-mean",
        "takes mean and variance of a message for each other",
        (19,),
        exchanged_moments="variance",
    ),
    _forward(
        "squares-for-mean",
        "takes mean and M2 of a message for each other",
        (19,),
        exchanged_moments="squares",
    ),
    *(
        _forward(
            f"permuted-counts-{name}",
            f"weighs a rank by the count of the {name} one",
            (19,),
            **_all(permuted(shift)),
        )
        for name, shift in (("next", -1), ("previous", 1))
    ),
    _forward("pairs-of-ranks", "merges pairs of neighbours only", (4,), **_all(pairs)),
    _forward("empty-as-one", "counts a rank without values as one value, zero", (9,), **_all(empty_as_one)),
    _forward("eps-in-low-precision", "rounds eps to the input's dtype", (16,), eps=_rounded_eps),
    _forward(
        "running-in-training",
        "normalises with the running buffers in training",
        (17, 18, 24),
        running_in_training=True,
    ),
    _forward(
        "batch-in-evaluation", "normalises with the group's batch in evaluation", (18,), batch_in_eval="group"
    ),
    _forward(
        "own-batch-in-evaluation",
        "normalises with the rank's batch in evaluation",
        (18,),
        batch_in_eval="own",
    ),
    _forward(
        "always-training",
        "trains in evaluation, too",
        (18,),
        batch_in_eval="group",
        training_gradient_in_eval=True,
        updates=lambda case, k, total: int(total > 0),
        counted=lambda case, k, total: 1,
    ),
    _forward(
        "input-as-contiguous", "reads the input's memory as if contiguous", (8,), inputs=input_as_contiguous
    ),
    _forward(
        "input-like-cotangent", "reads the input in the cotangent's layout", (8,), inputs=input_like_cotangent
    ),
    *(
        _forward(
            f"no-channels-from-{limit or 'power-of-two'}",
            words,
            (23,),
            parameters=_tail(limit),
        )
        for limit, words in (
            (None, "leaves out the channels past a power of two"),
            (64, "leaves out the channels past 64"),
            (128, "leaves out the channels past 128"),
        )
    ),
    *(
        _forward(
            f"counts-in-{dtype}",
            f"holds counts in {words}",
            (13,),
            **_all(rounded_counts(dtype)),
        )
        for dtype, words in (
            ("buffers", "the buffers' dtype"),
            ("input", "the input's dtype"),
            ("bfloat16", "bfloat16"),
            ("float16", "float16"),
        )
    ),
    Cause(
        id="low-precision-sums",
        words="accumulates in half precision",
        classes=(12, 13),
        part="forward",
        change={"contract": {"accumulate": "lower"}},
        floor=0.02,
    ),
    Cause(
        id="one-pass-variance",
        words="takes the variance as E[x^2] - E[x]^2",
        classes=(12,),
        part="forward",
        change={"grade": "C"},
        floor=1e-4,
    ),
)

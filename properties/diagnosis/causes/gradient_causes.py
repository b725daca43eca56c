"""Causes in the gradients of the input and of the parameters."""

from __future__ import annotations

from typing import Any

from properties.diagnosis.causes.cause import Cause
from properties.diagnosis.causes.rank_weights import (
    but_last_over_total,
    by_ranks,
    factor,
    first,
    first_over_total,
    mean_of_means,
    ones,
    over_mean,
    over_own,
    over_ranks,
    own_count,
    own_over_total,
    times_ranks,
    world_times_own,
)
from properties.diagnosis.variant import Floats, none
from properties.values.misread_layouts import cotangent_as_contiguous, cotangent_like_input


def _sums(weigh: Any) -> dict[str, Any]:
    return {"cotangent": weigh, "projection": weigh}


def _backward(id: str, words: str, classes: tuple[int, ...], **change: Any) -> Cause:
    return Cause(id=id, words=words, classes=classes, part="backward", change=change)


def _unweighted(rows: Floats) -> Floats:
    rows[0] = 1.0
    return rows


CONSISTENT = Cause(id="", words="", classes=(), part="backward", change={"consistent": True, "derived": True})
"""No cause: the gradient that belongs to a wrong forward is right in its way."""

BACKWARD: tuple[Cause, ...] = (
    _backward(
        "own-correction-in-evaluation",
        "has the correction terms of training in evaluation, by the rank's own sums",
        (18,),
        corrected=True,
        sums_in_eval=own_count,
    ),
    _backward(
        "correction-in-evaluation",
        "has the correction terms of training in evaluation",
        (18,),
        corrected=True,
    ),
    _backward(
        "swapped-sums", "takes the reduced sums of the backward for each other", (19,), swapped_sums=True
    ),
    _backward(
        "detached-statistics", "takes mean and variance for constants in the backward", (5,), **_sums(none)
    ),
    _backward("no-mean-term", "leaves the mean's term out of grad_input", (5,), cotangent=none),
    _backward("no-variance-term", "leaves the variance's term out of grad_input", (5,), projection=none),
    _backward("local-sums", "does not reduce the backward sums", (5,), **_sums(own_count)),
    _backward(
        "local-sums-over-total",
        "does not reduce the backward sums, but divides by the total",
        (5,),
        **_sums(own_over_total),
    ),
    _backward("local-mean-term", "does not reduce the sum of the cotangent", (5,), cotangent=own_count),
    _backward(
        "local-mean-term-over-total",
        "does not reduce the sum of the cotangent, but divides by the total",
        (5,),
        cotangent=own_over_total,
    ),
    _backward(
        "local-variance-term", "does not reduce the sum of cotangent times xhat", (5,), projection=own_count
    ),
    _backward(
        "local-variance-term-over-total",
        "does not reduce the sum of cotangent times xhat, but divides by the total",
        (5,),
        projection=own_over_total,
    ),
    _backward("mean-of-means", "averages the ranks' means in the backward", (2,), **_sums(mean_of_means)),
    _backward(
        "own-count-times-ranks",
        "divides the backward sums by its own count times the ranks",
        (2,),
        **_sums(world_times_own),
    ),
    _backward("own-count", "divides the backward sums by its own count", (2,), **_sums(over_own)),
    _backward("over-ranks", "divides the backward sums by the number of ranks", (2,), **_sums(over_ranks)),
    _backward(
        "over-mean-count", "divides the backward sums by the ranks' mean count", (2, 4), **_sums(over_mean)
    ),
    _backward("undivided", "does not divide the backward sums", (2,), **_sums(ones)),
    _backward("first-rank-sums", "uses the first rank's backward sums", (5, 4, 6), **_sums(first_over_total)),
    _backward(
        "backward-without-last-rank",
        "leaves the last rank out of the backward sums",
        (5, 4),
        **_sums(but_last_over_total),
    ),
    _backward(
        "world-backward",
        "ignores the process group in the backward",
        (4,),
        scope="world",
        **_sums(lambda ranks: ranks.rows(1.0 / max((ranks.counts * ranks.group).sum(), 1.0))),
    ),
    _backward("gradient-times-ranks", "multiplies grad_input by the number of ranks", (6,), scale=factor(1)),
    _backward("gradient-over-ranks", "divides grad_input by the number of ranks", (6,), scale=factor(-1)),
    _backward(
        "training-gradient-in-evaluation",
        "has the backward of training in evaluation",
        (18,),
        training_gradient_in_eval=True,
    ),
    _backward(
        "cotangent-like-input", "reads the cotangent in the input's layout", (8,), inputs=cotangent_like_input
    ),
    _backward(
        "cotangent-as-contiguous",
        "reads the cotangent's memory as if contiguous",
        (8,),
        inputs=cotangent_as_contiguous,
    ),
    _backward("unweighted-gradient", "ignores the weight in grad_input", (20,), parameters=_unweighted),
    _backward(
        "unweighted-gradient-in-training",
        "ignores the weight in grad_input of training",
        (20,),
        parameters=_unweighted,
        parameters_in=("train",),
    ),
)


def _affine(id: str, words: str, classes: tuple[int, ...], **change: Any) -> Cause:
    return Cause(id=id, words=words, classes=classes, part="affine", change=change)


def _both(weigh: Any) -> dict[str, Any]:
    return {"weight": weigh, "bias": weigh}


SWAPPED = Cause(id="", words="", classes=(), part="affine", change={"swapped_gradients": True})
"""No cause: where weight and bias are swapped in the forward, so are their gradients."""

AFFINE: tuple[Cause, ...] = (
    _affine(
        "affine-gradients-swapped", "swaps the gradients of weight and bias", (19,), swapped_gradients=True
    ),
    _affine("affine-gradients-summed", "sums the parameters' gradients over the ranks", (6,), **_both(ones)),
    _affine(
        "affine-gradients-averaged",
        "averages the parameters' gradients over the ranks",
        (6,),
        **_both(over_ranks),
    ),
    _affine(
        "affine-gradients-times-ranks",
        "multiplies the parameters' gradients by the ranks",
        (6,),
        **_both(times_ranks),
    ),
    _affine(
        "affine-gradients-over-ranks",
        "divides the parameters' gradients by the ranks",
        (6,),
        **_both(by_ranks),
    ),
    _affine(
        "first-rank-affine-gradients",
        "gives every rank the first one's parameter gradients",
        (6,),
        **_both(first),
    ),
    _affine("weight-gradient-summed", "sums the weight's gradient over the ranks", (6,), weight=ones),
    _affine(
        "weight-gradient-averaged", "averages the weight's gradient over the ranks", (6,), weight=over_ranks
    ),
    _affine("bias-gradient-summed", "sums the bias's gradient over the ranks", (6,), bias=ones),
    _affine("bias-gradient-averaged", "averages the bias's gradient over the ranks", (6,), bias=over_ranks),
    _affine(
        "overwritten-gradients", "overwrites the parameters' gradients instead of adding", (21,), forgets=True
    ),
    _affine(
        "cotangent-like-input-in-parameters",
        "reads the cotangent in the input's layout",
        (8,),
        inputs=cotangent_like_input,
    ),
    _affine(
        "cotangent-as-contiguous-in-parameters",
        "reads the cotangent's memory as if contiguous",
        (8,),
        inputs=cotangent_as_contiguous,
    ),
)

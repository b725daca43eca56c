"""Slips in the running buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from properties.diagnosis.plain_batchnorm import Buffers, Floats, Moments, Step, blend, moments_of, unbiased
from properties.diagnosis.slips.slip import Slip, by_half, slip
from properties.values.elements import round_to


def _tracked(change: Callable[[Step, int, Buffers, Moments, float], Buffers]) -> dict[str, Any]:
    return {"tracked": change}


def _usual(step: Step, slot: int, old: Buffers, moments: Moments, share: float) -> Buffers:
    del slot
    return Buffers(blend(old.mean, moments.mean, share), blend(old.var, unbiased(step, moments), share))


def _variance_of(formula: Callable[[Step, int, Moments], Floats]) -> dict[str, Any]:
    def tracked(step: Step, slot: int, old: Buffers, moments: Moments, share: float) -> Buffers:
        right = _usual(step, slot, old, moments, share)
        return right._replace(var=blend(old.var, formula(step, slot, moments), share))

    return _tracked(tracked)


def _update(
    *,
    mean: Callable[[Floats, Floats, float], Floats] = blend,
    var: Callable[[Floats, Floats, float], Floats] = blend,
) -> dict[str, Any]:
    """Return updates that are other functions of the old value, the new one and its share."""

    def tracked(step: Step, slot: int, old: Buffers, moments: Moments, share: float) -> Buffers:
        del slot
        return Buffers(mean(old.mean, moments.mean, share), var(old.var, unbiased(step, moments), share))

    return _tracked(tracked)


def _reversed(old: Floats, new: Floats, share: float) -> Floats:
    return share * old + (1.0 - share) * new


def _corrected_by(count: Callable[[Step, int, Moments], float]) -> dict[str, Any]:
    """Return a variance that is corrected as one of another count."""

    def formula(step: Step, slot: int, moments: Moments) -> Floats:
        n = count(step, slot, moments)
        return moments.var * (n / (n - 1.0)) if n > 1 else moments.var

    return _variance_of(formula)


def _biased_in_a_group(step: Step, slot: int, moments: Moments) -> Floats:
    del slot
    return moments.var if len(step.members) > 1 else unbiased(step, moments)


def _unbiased_in_a_group(step: Step, slot: int, moments: Moments) -> Floats:
    del slot
    return unbiased(step, moments) if len(step.members) > 1 else moments.var


def _half(old: Floats, new: Floats, share: float, dtype: str) -> Floats:
    return blend(old, round_to(new, dtype), share)  # type: ignore[arg-type]


def _half_moments(step: Step, slot: int, old: Buffers, moments: Moments, share: float) -> Buffers:
    del slot
    return Buffers(
        _half(old.mean, moments.mean, share, step.half),
        _half(old.var, unbiased(step, moments), share, step.half),
    )


def _own_moments(step: Step, slot: int, old: Buffers, moments: Moments, share: float) -> Buffers:
    own = moments_of(step.rows[slot])
    return _usual(step, slot, old, own if own.n else moments, share)


def _once_a_rank(step: Step, slot: int, old: Buffers, moments: Moments, share: float) -> Buffers:
    for _ in step.members:
        old = _usual(step, slot, old, moments, share)
    return old


def _replaced_by_first(step: Step, slot: int, old: Buffers, moments: Moments, share: float) -> Buffers:
    first = not any(one.mode == "train" for one in step.case.steps[: step.number])
    return _usual(step, slot, old, moments, 1.0 if first else share)


def _zero_as_none(step: Step, slot: int, old: Buffers, moments: Moments, share: float) -> Buffers:
    trained = sum(one.mode == "train" for one in step.case.steps[: step.number + 1])
    return _usual(step, slot, old, moments, 1.0 / trained if step.case.momentum == 0 else share)


def _own_variance(step: Step, slot: int, moments: Moments) -> Floats:
    own = moments_of(step.rows[slot])
    return unbiased(step, own if own.n else moments)


def _buffers(id: str, words: str, classes: tuple[int, ...], change: dict[str, Any]) -> Slip:
    return slip(id, words, classes, "buffers", **change)


TRACKED: tuple[Slip, ...] = (
    _buffers(
        "deviation-tracked",
        "tracks the deviation in place of the variance",
        (0, 7, 19),
        _variance_of(lambda step, slot, moments: np.sqrt(unbiased(step, moments))),
    ),
    _buffers(
        "biased-deviation-tracked",
        "tracks the (biased) deviation in place of the variance",
        (0, 7, 19),
        _variance_of(lambda step, slot, moments: np.sqrt(moments.var)),
    ),
    _buffers(
        "variance-rate-reversed",
        "updates the running variance with old and new exchanged in weight",
        (17,),
        _update(var=_reversed),
    ),
    _buffers(
        "mean-rate-reversed",
        "updates the running mean with old and new exchanged in weight",
        (17,),
        _update(mean=_reversed),
    ),
    _buffers(
        "not-decayed",
        "adds the new statistics to the buffers without a decay of the old",
        (17,),
        _update(mean=lambda old, new, m: old + m * new, var=lambda old, new, m: old + m * new),
    ),
    _buffers(
        "variance-not-decayed",
        "adds the new variance to its buffer without a decay of the old",
        (17,),
        _update(var=lambda old, new, m: old + m * new),
    ),
    _buffers(
        "new-not-weighed",
        "adds the new statistics to the decayed buffers undiminished",
        (17,),
        _update(mean=lambda old, new, m: (1 - m) * old + new, var=lambda old, new, m: (1 - m) * old + new),
    ),
    _buffers(
        "new-subtracted",
        "moves the buffers away from the new statistics",
        (17, 20),
        _update(
            mean=lambda old, new, m: old - m * (new - old), var=lambda old, new, m: old - m * (new - old)
        ),
    ),
    _buffers(
        "momentum-squared",
        "applies the momentum twice",
        (17,),
        _update(
            mean=lambda old, new, m: blend(old, new, m * m), var=lambda old, new, m: blend(old, new, m * m)
        ),
    ),
    _buffers(
        "replaced-by-new",
        "replaces the buffers by the new statistics",
        (17,),
        _update(mean=lambda old, new, m: new, var=lambda old, new, m: new),
    ),
    _buffers(
        "updated-twice",
        "updates the buffers twice in a step",
        (24, 17),
        _update(
            mean=lambda old, new, m: blend(blend(old, new, m), new, m),
            var=lambda old, new, m: blend(blend(old, new, m), new, m),
        ),
    ),
    _buffers(
        "updated-once-a-rank",
        "updates the buffers once for each rank of the group",
        (24, 17, 6),
        _tracked(_once_a_rank),
    ),
    _buffers(
        "replaced-by-the-first",
        "replaces the buffers by the statistics of the first batch",
        (17,),
        _tracked(_replaced_by_first),
    ),
    _buffers(
        "biased-in-a-group",
        "tracks the unbiased variance on a single rank and the biased one in a group",
        (7,),
        _variance_of(_biased_in_a_group),
    ),
    _buffers(
        "unbiased-in-a-group",
        "tracks the biased variance on a single rank and the unbiased one in a group",
        (7,),
        _variance_of(_unbiased_in_a_group),
    ),
    _buffers(
        "corrected-twice",
        "applies n / (n - 1) twice",
        (7,),
        _variance_of(lambda step, slot, m: unbiased(step, m) * (m.n / (m.n - 1.0) if m.n > 1 else 1.0)),
    ),
    _buffers(
        "corrected-the-wrong-way",
        "applies (n - 1) / n in place of n / (n - 1)",
        (7,),
        _variance_of(lambda step, slot, m: m.var * ((m.n - 1.0) / m.n if m.n > 1 else 1.0)),
    ),
    _buffers(
        "corrected-by-samples",
        "corrects the variance by the samples of all ranks, not by their values",
        (7,),
        _corrected_by(lambda step, slot, moments: float(sum(x.shape[0] for x in step.x))),
    ),
    _buffers(
        "corrected-by-own-samples-times-ranks",
        "corrects the variance by the rank's samples times the ranks, not by the values of all",
        (7, 15),
        _corrected_by(lambda step, slot, moments: float(step.x[slot].shape[0] * len(step.members))),
    ),
    _buffers(
        "zero-momentum-as-none",
        "takes a momentum of 0 for None",
        (17,),
        _tracked(_zero_as_none),
    ),
    _buffers(
        "corrected-by-one-rank",
        "corrects the variance by the rank's own count",
        (7, 15),
        _corrected_by(lambda step, slot, moments: float(step.counts[slot])),
    ),
    _buffers(
        "corrected-by-the-mean-count",
        "corrects the variance by the mean count of the ranks",
        (7,),
        _corrected_by(lambda step, slot, moments: float(step.counts.mean())),
    ),
    _buffers(
        "own-statistics-tracked",
        "tracks each rank's own statistics",
        (15, 4),
        _tracked(_own_moments),
    ),
    _buffers("own-variance-tracked", "tracks each rank's own variance", (15, 4), _variance_of(_own_variance)),
    *by_half(
        "tracked-in-half",
        "rounds the statistics to {} before they go into the buffers",
        (13,),
        "buffers",
        tracked=_half_moments,
    ),
)

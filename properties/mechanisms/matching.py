"""Matching: which of several expectations an observed tensor meets."""

from __future__ import annotations

import numpy as np

from properties.expectation.expected import Interval
from properties.judge.bounded import ratios
from properties.observation import Tensor


def meets(tensor: Tensor | None, interval: Interval | None) -> bool:
    """Return whether every element of `tensor` is what `interval` expects, undecided elements included.

    An absent tensor meets an absent or an optional expectation. A dtype is another property's business.
    """
    if tensor is None or interval is None:
        return tensor is None and (interval is None or interval.optional)
    if tensor.shape != interval.shape:
        return False
    interval = interval.at(tensor.positions)
    poisoned = ~np.isfinite(interval.value) & ~np.isinf(interval.bound)
    if interval.repeats and (interval.overflows.any() or poisoned.any()):
        interval = interval.complete()
        poisoned = ~np.isfinite(interval.value) & ~np.isinf(interval.bound)
    for observed in interval.extremes(tensor):
        if float(ratios(interval.value, interval.bound, interval.overflows, observed).max(initial=0.0)) > 1:
            return False
        if (poisoned & np.isfinite(observed)).any():
            return False
    return True

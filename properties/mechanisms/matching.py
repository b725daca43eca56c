"""Matching: which of several expectations an observed tensor meets."""

from __future__ import annotations

import numpy as np

from properties.expectation.expected import Interval
from properties.judge.bounded import as_folded, ratios
from properties.observation import Tensor


def meets(tensor: Tensor | None, interval: Interval | None) -> bool:
    """Return whether every element of `tensor` is what `interval` expects, undecided elements included.

    An absent tensor meets an absent or an optional expectation. A dtype is another property's business.
    """
    if tensor is None or interval is None:
        return tensor is None and (interval is None or interval.optional)
    if tensor.shape != interval.shape:
        return False
    tensor = as_folded(tensor, interval)
    interval, observed = interval.at(tensor), tensor.values
    if float(ratios(interval.value, interval.bound, interval.overflows, observed).max(initial=0.0)) > 1:
        return False
    poisoned = ~np.isfinite(interval.value) & ~np.isinf(interval.bound)
    return not (poisoned & np.isfinite(observed)).any()

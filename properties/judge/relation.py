"""Relation: what the wrong values of a channel have in common with what is expected of them.

A lost factor, a divisor of another count or a forgotten term makes all of them the same multiple of what is
expected, or shifts all by the same amount. Nothing is said unless that is within the bound of every one, and
the bounds are small against it: values that are rounded otherwise have a factor near 1 in common that means
nothing. Of a single value only a fraction or a zero is told.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FEWEST_SHIFTED = 3
"""Wrong elements of which a common difference is told; two have a common factor by chance no easier."""
_SHARP = 0.01
"""Greatest relative width of the factors, or differences, that all of the elements allow."""
_GREATEST_DIVISOR = 8
"""Of fractions that are told as such."""
_FAR = 10.0
"""Bounds by which each element must be off."""


def relation(observed: Floats, expected: Floats, bound: Floats) -> str:
    """Return what wrong elements are, in terms of what is expected of them; nothing if there is no one way.

    Args:
        observed: The wrong elements, (n,).
        expected: What each must be.
        bound: How far each may be from that.
    """
    known = np.isfinite(observed).all() and np.isfinite(expected).all() and np.isfinite(bound).all()
    if not known or not len(observed) or (np.abs(observed - expected) < _FAR * bound).any():
        return ""
    if not observed.any():
        return "0"
    if (np.abs(expected) > bound).all():
        ends = (observed - bound) / expected, (observed + bound) / expected
        factor = _common(np.minimum(*ends), np.maximum(*ends))
        if factor is not None and (len(observed) > 1 or _fraction(*factor)):
            return f"{_fraction(*factor) or f'{sum(factor) / 2:.4g}'} x what is expected"
    if len(observed) >= _FEWEST_SHIFTED:
        shift = _common(observed - expected - bound, observed - expected + bound)
        if shift is not None:
            return f"what is expected {'-' if sum(shift) < 0 else '+'} {abs(sum(shift) / 2):.4g}"
    return ""


def _common(low: Floats, high: Floats) -> tuple[float, float] | None:
    """Return the least and greatest number within all intervals; None if there is none, or far too many."""
    least, greatest = float(low.max()), float(high.min())
    if least > greatest or greatest - least > _SHARP * abs(least + greatest) / 2:
        return None
    return least, greatest


def _fraction(least: float, greatest: float) -> str:
    """Return a small fraction between two numbers; nothing if there is none."""
    near = Fraction((least + greatest) / 2).limit_denominator(_GREATEST_DIVISOR)
    small = 0 < abs(near.numerator) <= _GREATEST_DIVISOR
    return str(near) if small and least <= near <= greatest else ""

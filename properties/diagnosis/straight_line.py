"""A straight line through values that rounding has moved: whether it goes through all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_SLACK = 4.0
"""Bounds that two right values of different statistics may lie apart from a common line."""


@dataclass(frozen=True, slots=True)
class Line:
    """The line constant + slope x nearest to some values.

    Attributes:
        holds: It goes through all of them.
        tells: They might have been on no line: there are more than two.
    """

    constant: float
    slope: float
    holds: bool
    tells: bool = True


def fitted(x: Floats, y: Floats, *, bound: Floats, right: Floats) -> Line | None:
    """Return the line nearest to the values `y` at `x`; None if there is none.

    That is so where all lie at one place, and of values that are all NaN.

    Args:
        x: Where, (n,).
        y: The values, (n,).
        bound: How far right ones may be from where they belong, (n,).
        right: What is expected, (n,): a line that is steeper rounds more.
    """
    if not (np.isfinite(x) & np.isfinite(bound)).all() or (places := len(np.unique(x))) < 2:
        return None
    finite = np.isfinite(y)
    if not finite.all():
        return Line(np.nan, np.nan, holds=False) if finite.any() else None
    center = x.mean()
    spread = np.abs(x - center).max()
    matrix = np.stack([np.ones_like(x), (x - center) / spread], axis=1)
    solved = np.linalg.lstsq(matrix, y, rcond=None)[0]
    with np.errstate(all="ignore"):
        steeper = np.abs(y).max() / max(np.abs(right).max(), np.finfo(np.float64).tiny)
    near = np.abs(matrix @ solved - y) <= _SLACK * max(1.0, steeper) * (bound + bound.max())
    slope = float(solved[1] / spread)
    return Line(float(solved[0]) - slope * center, slope, holds=bool(near.all()), tells=places > 2)

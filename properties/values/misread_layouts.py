"""Misreading: the elements a subject gets that reads a tensor's memory in another layout than its own.

Values are (N, C, positions) in logical order; the spatial sizes come from the case. A tensor with gaps, or an
`expanded` one, has memory that is not its own, so that misreading it has no prediction: it is left as it is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from properties.case import Case

Floats = NDArray[np.float64]


def input_as_contiguous(case: Case, rank: int, x: Floats, g: Floats) -> tuple[Floats, Floats]:
    """Return the input as its memory reads in C order."""
    return _reread(case, rank, x, stored=case.input_layout, read="contiguous"), g


def input_like_cotangent(case: Case, rank: int, x: Floats, g: Floats) -> tuple[Floats, Floats]:
    """Return the input as its memory reads in the cotangent's layout."""
    return _reread(case, rank, x, stored=case.input_layout, read=case.cotangent_layout), g


def cotangent_as_contiguous(case: Case, rank: int, x: Floats, g: Floats) -> tuple[Floats, Floats]:
    """Return the cotangent as its memory reads in C order."""
    return x, _reread(case, rank, g, stored=case.cotangent_layout, read="contiguous")


def cotangent_like_input(case: Case, rank: int, x: Floats, g: Floats) -> tuple[Floats, Floats]:
    """Return the cotangent as its memory reads in the input's layout."""
    return x, _reread(case, rank, g, stored=case.cotangent_layout, read=case.input_layout)


def as_whole(case: Case, rank: int, layout: str) -> str:
    """Return the layout that a part of a longer tensor has: contiguous if it is a single row, else sliced."""
    if layout not in ("cropped", "split"):
        return layout
    shape = case.shape_of(rank)
    rows = shape[0] if layout == "split" else math.prod(shape[:-1])
    return "contiguous" if rows == 1 else "sliced"


def _reread(case: Case, rank: int, values: Floats, *, stored: str, read: str) -> Floats:
    shape = case.shape_of(rank)
    stored, read = (as_whole(case, rank, layout) for layout in (stored, read))
    known = ("contiguous", "channels_last", "permuted")
    if stored == read or stored not in known or read not in known or values.size == 0:
        return values
    memory = values.reshape(shape).transpose(_axes(stored, len(shape))).reshape(-1)
    axes = _axes(read, len(shape))
    laid = memory.reshape([shape[axis] for axis in axes])
    return laid.transpose(np.argsort(axes)).reshape(values.shape)


def _axes(layout: str, dims: int) -> tuple[int, ...]:
    """Return the logical axes from the slowest in memory to the fastest."""
    if layout == "channels_last":
        return (0, *range(2, dims), 1)
    return tuple(reversed(range(dims))) if layout == "permuted" else tuple(range(dims))

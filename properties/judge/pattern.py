"""Pattern: which elements of a tensor are beyond their bounds, where an index tells them from the others.

A kernel that drops a tail, misses a mask or mixes up lanes is wrong in elements that an index separates: the
samples from one on, every fourth position. Nothing is said unless (almost) all elements of such a set are
wrong and all others are right.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_MOST = 0.9
"""Share of a set that must be wrong: some elements are right by chance."""
_FEWEST = 2
"""Wrong elements, and indices on either side, of which a pattern is told."""

Bools = NDArray[np.bool_]


def pattern(wrong: Bools) -> str:
    """Return which elements of a tensor are `wrong`, in words; nothing if no index tells.

    Args:
        wrong: In the tensor's logical shape, (N, C, *spatial) or (C,).
    """
    if not _FEWEST <= np.count_nonzero(wrong) <= wrong.size - _FEWEST:
        return ""
    for name, table in _views(wrong):
        often = table.mean(axis=1)
        hit = often > 0
        if hit.any() and not hit.all() and often[hit].mean() >= _MOST:
            found = _described(np.flatnonzero(hit), len(hit))
            if found:
                return f"{name} {found}"
    return ""


def _views(wrong: Bools) -> Iterator[tuple[str, Bools]]:
    """Yield what an index counts, and the elements with that index, (indices, elements)."""
    if wrong.ndim == 1:
        yield "channels", wrong[:, None]
        return
    n, c = wrong.shape[:2]
    block = wrong.reshape(n, c, -1)
    yield "samples", block.reshape(n, -1)
    yield "channels", block.transpose(1, 0, 2).reshape(c, -1)
    yield "positions", block.transpose(2, 0, 1).reshape(block.shape[2], -1)
    yield "values of each channel", block.transpose(0, 2, 1).reshape(-1, c)
    yield "elements in memory order", wrong.reshape(-1, 1)


def _described(indices: NDArray[np.int64], size: int) -> str:
    """Return a set of indices below `size` in words, if it has a form; nothing for any other."""
    first, last, many = int(indices[0]), int(indices[-1]), len(indices)
    if last - first + 1 == many:
        if many == 1:
            return f"of index {first}" if size > _FEWEST else ""
        return f"from {first} on" if last == size - 1 else f"{first} to {last}"
    for power in range(1, size.bit_length()):
        step = 1 << power
        residues = np.unique(indices % step)
        alike = (size - int(residues[0]) + step - 1) // step
        if len(residues) == 1 and alike == many:
            return f"{int(residues[0])} modulo {step}"
    return ""

"""Sampling: which positions of a large step have their output and gradient of the input given back.

Rules
-----
- Statistics, buffers and gradients of parameters are judged whole, always. Above 2^20 elements of a process
  group, a rank gives output and gradient of the input back at a sample of positions, with all their channels,
  and those are judged.
- The first and last positions of every rank are in the sample, since kernels err at edges; the rest are drawn
  from the case's seed, step and rank. The same case has the same sample.
- Imported by the ranks: neither torch, jax nor hypothesis here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.values.philox import philox

Positions = NDArray[np.int64]

SAMPLED_ABOVE = 1 << 20
"""Elements of a step over the ranks of a process group."""
_ELEMENTS, _LEAST = 1 << 17, 64
_EDGE = 8
_TAG = 2**31 + 8


def sample(case: Case, rank: int, step: int) -> Positions | None:
    """Return the positions in the rank's sample of a step, ascending; None if all are given back.

    A position is its sample times the spatial size plus its spatial position.
    """
    members = next(group for group in case.process_groups if rank in group)
    if case.total_of(members) * case.channels <= SAMPLED_ABOVE:
        return None
    each = max(_LEAST, _ELEMENTS // (case.channels * len(members)))
    return _positions(case, rank, step, case.count_of(rank), each)


def _positions(case: Case, rank: int, step: int, n: int, wanted: int) -> Positions:
    if n <= wanted:
        return np.arange(n)
    edge = wanted // _EDGE
    number = np.arange(wanted - 2 * edge, dtype=np.uint64)
    zero, last = np.zeros(1, np.uint64), np.array([rank + 64 * step], np.uint64)
    word = philox((number, zero + np.uint64(_TAG), zero, last), case.seed)[0]
    drawn = edge + (word * np.uint64(n - 2 * edge) >> np.uint64(32)).astype(np.int64)
    return np.unique(np.concatenate([np.arange(edge), drawn, np.arange(n - edge, n)]))

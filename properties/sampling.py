"""Sampling: which positions of a large step have their output and gradient of the input judged.

Rules
-----
- Statistics, buffers and gradients of parameters are judged whole, always. Above 2^20 elements of a process
  group, output and gradient of the input are judged at a sample of positions, with all their channels.
- The first and last positions of every rank are in the sample, since kernels err at edges; the rest are drawn
  from the case's seed, step and rank. The same case has the same sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.words import philox

Positions = NDArray[np.int64]

SAMPLED_ABOVE = 1 << 20
"""Elements of a step over the ranks of a process group."""
_ELEMENTS, _LEAST = 1 << 17, 64
_EDGE = 8
_TAG = 2**31 + 8


class Sample(NamedTuple):
    """The positions in the sample of a step.

    Attributes:
        own: Of each rank: its positions, sample times spatial size plus spatial position, ascending.
    """

    own: tuple[Positions, ...]


def sample(case: Case, members: tuple[int, ...], step: int) -> Sample | None:
    """Return the sample of a step over `members`; None if it is judged whole."""
    counts = [case.count_of(rank) for rank in members]
    if sum(counts) * case.channels <= SAMPLED_ABOVE:
        return None
    each = max(_LEAST, _ELEMENTS // (case.channels * len(members)))
    return Sample(
        tuple(_positions(case, rank, step, n, each) for rank, n in zip(members, counts, strict=True))
    )


def _positions(case: Case, rank: int, step: int, n: int, wanted: int) -> Positions:
    if n <= wanted:
        return np.arange(n)
    edge = wanted // _EDGE
    number = np.arange(wanted - 2 * edge, dtype=np.uint64)
    zero, last = np.zeros(1, np.uint64), np.array([rank + 64 * step], np.uint64)
    word = philox((number, zero + np.uint64(_TAG), zero, last), case.seed)[0]
    drawn = edge + (word * np.uint64(n - 2 * edge) >> np.uint64(32)).astype(np.int64)
    return np.unique(np.concatenate([np.arange(edge), drawn, np.arange(n - edge, n)]))

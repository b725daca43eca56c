"""Property `nonfinite`: where the contract asks for a non-finite number, the observed one is not finite.

A non-finite input poisons its channel on every rank of the group, and nothing else. Judged by class: NaN and
infinities stand for each other, since right implementations differ in which they produce. That nothing else
is poisoned is part of the bounded comparison.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from properties.bits import hexadecimal, number
from properties.case import Case
from properties.completion import complete_ranks
from properties.domain import Contract
from properties.expected import Expected
from properties.observation import Observation, Tensor
from properties.verdict import Discrepancy, Verdict, holds, violated


def nonfinite(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
    """Return whether every element that must not be finite is not finite."""
    del contract
    ranks = complete_ranks(case, observation, expected)
    facts, found = 0, []
    for name, by_rank in expected.tensors.items():
        for rank in ranks:
            interval = by_rank.get(rank)
            tensor = observation.ranks[rank].tensors.get(name)
            if interval is None or tensor is None or tensor.shape != interval.shape:
                continue
            poisoned = ~np.isfinite(interval.value) & ~np.isinf(interval.bound)
            if not poisoned.any():
                continue
            interval = interval.complete()
            poisoned = ~np.isfinite(interval.value) & ~np.isinf(interval.bound)
            facts += int(np.count_nonzero(poisoned))
            wrong = poisoned & np.isfinite(interval.of(tensor))
            if wrong.any():
                index = interval.index(tuple(int(i) for i in np.argwhere(wrong)[0]))
                found.append(_discrepancy(name, rank, tensor, index, wrong=wrong, poisoned=poisoned))
    if found:
        return violated("nonfinite", found, elements=facts)
    return holds("nonfinite", elements=facts) if facts else None


def _discrepancy(
    name: str,
    rank: int,
    tensor: Tensor,
    index: tuple[int, ...],
    *,
    wrong: NDArray[np.bool_],
    poisoned: NDArray[np.bool_],
) -> Discrepancy:
    axis = 1 if wrong.ndim > 1 else 0
    return Discrepancy(
        quantity=name,
        rank=rank,
        index=index,
        observed=number(tensor.values[index]),
        expected="not finite",
        ratio=np.inf,
        observed_bits=hexadecimal(tensor, index),
        mismatched=int(np.count_nonzero(wrong)),
        elements=int(np.count_nonzero(poisoned)),
        channels=tuple(int(c) for c in np.unique(np.nonzero(wrong)[axis])),
        mismatched_ranks=(rank,),
    )

"""Property `nonfinite`: where the contract asks for a non-finite number, the observed one is not finite.

A non-finite input poisons its channel on every rank of the group, and nothing else. Judged by class: NaN and
infinities stand for each other, since right implementations differ in which they produce. That nothing else
is poisoned is part of the bounded comparison.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected, Interval
from properties.judge.bits import hexadecimal, number
from properties.judge.bounded import as_folded
from properties.judge.completion import complete_ranks
from properties.judge.property import COMPLETE, Property
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
            if not _poisoned(interval).any():
                continue
            tensor = as_folded(tensor, interval)
            interval = interval.at(tensor)
            poisoned = _poisoned(interval)
            count = int(np.broadcast_to(interval.multiplicity, poisoned.shape)[poisoned].sum())
            facts += count
            wrong = poisoned & np.isfinite(tensor.values)
            if wrong.any():
                found.append(_discrepancy(name, rank, tensor, wrong=wrong, poisoned=count))
    if found:
        return violated("nonfinite", found, elements=facts)
    return holds("nonfinite", elements=facts) if facts else None


def _poisoned(interval: Interval) -> NDArray[np.bool_]:
    return ~np.isfinite(interval.value) & ~np.isinf(interval.bound)


def _discrepancy(
    name: str, rank: int, tensor: Tensor, *, wrong: NDArray[np.bool_], poisoned: int
) -> Discrepancy:
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    axis = 1 if wrong.ndim > 1 else 0
    return Discrepancy(
        quantity=name,
        rank=rank,
        index=tensor.index(place),
        observed=number(tensor.values[place]),
        expected="not finite",
        ratio=np.inf,
        observed_bits=hexadecimal(tensor, place),
        mismatched=_distinct(tensor, wrong),
        elements=poisoned,
        at_least=tensor.positions is not None,
        channels=tuple(int(c) for c in np.unique(np.nonzero(wrong)[axis])),
        mismatched_ranks=(rank,),
    )


def _distinct(tensor: Tensor, wrong: NDArray[np.bool_]) -> int:
    """Return how many elements are marked; in a folded tensor an element may stand in several rows."""
    if tensor.positions is None:
        return int(np.count_nonzero(wrong))
    return len({(int(tensor.positions[place]), place[1]) for place in map(tuple, np.argwhere(wrong))})


NONFINITE = Property(
    id="nonfinite",
    judge=nonfinite,
    holds="A non-finite input makes its channel non-finite on every rank of the group.",
    violation="a non-finite input does not make its channel non-finite",
    must="a non-finite input must make its channel non-finite on every rank of the group.",
    quantities="elements of outputs, buffers and gradients that must not be finite",
    not_judged="Without a non-finite input. Which of NaN and infinity it is. " + COMPLETE,
)

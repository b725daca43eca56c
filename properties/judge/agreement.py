"""Property `agreement`: the running buffers are the same on all ranks of a group, bit for bit.

All ranks start from equal buffers and see the statistics of one batch; whoever rounds them differently on
different ranks lets the replicas of a model drift apart. Empty ranks are no exception. NaN by class.
"""

from __future__ import annotations

import numpy as np

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.bits import comparable, differences, hexadecimal, number
from properties.judge.completion import INCOMPLETE, complete_groups, failed_ranks
from properties.judge.property import COMPLETE, Property
from properties.observation import Observation, Tensor
from properties.verdict import Discrepancy, Verdict, holds, undecided, violated

_BUFFERS = ("running_mean.", "running_var.", "num_batches_tracked.")


def agreement(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
    """Return whether all ranks of each group hold bit-equal buffers after every step."""
    del contract
    facts, found = 0, []
    asked = _BUFFERS if case.counter else _BUFFERS[:2]
    for group in complete_groups(case, observation, expected):
        if len(group) < 2:
            continue
        held = [observation.ranks[rank].tensors for rank in group]
        for name in sorted({name for tensors in held for name in tensors if name.startswith(asked)}):
            facts += len(group) - 1
            one = _disagreement(name, group, [tensors.get(name) for tensors in held])
            if one is not None:
                found.append(one)
    if found:
        return violated("agreement", found, elements=facts)
    if facts:
        return holds("agreement", elements=facts)
    awaited = case.tracking and len(case.groups or ()) < case.world_size and case.world_size > 1
    return undecided("agreement", INCOMPLETE) if awaited and failed_ranks(observation, expected) else None


def _disagreement(name: str, group: tuple[int, ...], tensors: list[Tensor | None]) -> Discrepancy | None:
    first = tensors[0]
    guilty: list[int] = []
    example: Discrepancy | None = None
    for rank, other in zip(group[1:], tensors[1:], strict=True):
        one = _difference(name, (group[0], first), (rank, other))
        if one is not None:
            guilty.append(rank)
            example = example or one
    if example is None:
        return None
    return Discrepancy(
        quantity=name,
        rank=example.rank,
        index=example.index,
        observed=example.observed,
        expected=example.expected,
        observed_bits=example.observed_bits,
        mismatched=example.mismatched,
        elements=example.elements,
        channels=example.channels,
        mismatched_ranks=tuple(guilty),
        message=example.message,
    )


def _difference(
    name: str, one: tuple[int, Tensor | None], other: tuple[int, Tensor | None]
) -> Discrepancy | None:
    (first, a), (rank, b) = one, other
    if a is None or b is None:
        if a is b:
            return None
        return _plain(name, rank, f"{name} is there on rank {rank if a is None else first} only.")
    if not comparable(a, b):
        kinds = f"{a.dtype} {a.shape} on rank {first}, {b.dtype} {b.shape} on rank {rank}"
        return _plain(name, rank, f"{name} is {kinds}.")
    different = differences(a, b)
    if not different.any():
        return None
    index = tuple(int(i) for i in np.argwhere(different)[0])
    bits = hexadecimal(b, index)
    return Discrepancy(
        quantity=name,
        rank=rank,
        index=index,
        observed=number(b.values[index]),
        expected=number(a.values[index]),
        observed_bits=bits,
        mismatched=int(np.count_nonzero(different)),
        elements=different.size,
        channels=tuple(int(c) for c in np.unique(np.nonzero(different)[0])) if different.ndim else (),
        message=f"{name} differs: {hexadecimal(a, index)} on rank {first}, {bits} on rank {rank}.",
    )


def _plain(name: str, rank: int, message: str) -> Discrepancy:
    return Discrepancy(quantity=name, rank=rank, message=message)


AGREEMENT = Property(
    id="agreement",
    judge=agreement,
    holds="The running buffers are the same on all ranks of a group, bit for bit.",
    violation="the ranks of a group hold different running buffers",
    must="the running buffers must be equal on all ranks of a group, bit for bit.",
    quantities="`running_mean`, `running_var` and `num_batches_tracked` of every step",
    not_judged="Without running buffers, and in a group of one. " + COMPLETE,
)

"""Simulated subjects: what one with a known variant gives, as evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from properties.case import Case
from properties.diagnosis.diagnose import NUMERIC
from properties.diagnosis.prediction import predict
from properties.diagnosis.variant import Variant
from properties.domain import Contract
from properties.expectation.expect import expect
from properties.judge.catalogue import judge
from properties.observation import Observation, RankObservation, Tensor
from properties.values import elements
from properties.verdict import Outcome


def _unchanged(name: str, array: Any) -> Any:
    del name
    return array


@dataclass(frozen=True)
class Seen:
    """One piece of evidence."""

    case: Case
    observation: Observation
    violated: tuple[str, ...]
    minimal: bool = False


def observed(case: Case, variant: Variant, *, change: Callable[[str, Any], Any] = _unchanged) -> Seen:
    """Return what a subject with `variant` gives, and what that violates."""
    told = predict(case, Contract(), "A", variant=variant)
    right = expect(case, Contract(), "A")
    ranks = []
    for rank in range(case.world_size):
        tensors = {}
        for name, by_rank in told.tensors.items():
            if rank in by_rank:
                interval = by_rank[rank]
                stored = elements.round_to(change(name, interval.value), interval.dtype)
                array = stored.astype(np.float32 if interval.dtype == "bfloat16" else interval.dtype)
                if interval.dtype == "bfloat16":
                    array = (array.view(np.uint32) >> 16).astype(np.uint16)
                tensors[name] = Tensor(dtype=interval.dtype, array=array, requires_grad=True)
        for name, by_rank in told.tracked.items():
            tensors[name] = Tensor(dtype="int64", array=np.array(by_rank[rank]))
        ranks.append(
            RankObservation(rank=rank, ending="returned", tensors=tensors, digest=right.digests[rank])
        )
    observation = Observation(ranks=tuple(ranks))
    verdicts = judge(case, observation, right, Contract(), only=NUMERIC)
    return Seen(case, observation, tuple(v.property for v in verdicts if v.outcome is Outcome.VIOLATED))

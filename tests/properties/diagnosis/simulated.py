"""Simulated subjects: what one with a known variant gives, as evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.diagnosis.diagnose import NUMERIC
from properties.diagnosis.plain_batchnorm import Modes
from properties.diagnosis.plain_schedule import follow
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
    tensors = {
        (name, rank): change(name, interval.value)
        for name, by_rank in told.tensors.items()
        for rank, interval in by_rank.items()
    }
    return seen(case, tensors, told.tracked)


def slipped(case: Case, modes: Modes) -> Seen:
    """Return what a plain batch norm with these lines gives, and what that violates."""
    return seen(case, follow(case, Contract(), modes))


def seen(
    case: Case,
    given: dict[tuple[str, int], NDArray[np.float64]],
    tracked: dict[str, dict[int, int]] | None = None,
) -> Seen:
    """Return an observation of tensors by name and rank, rounded to their dtypes, and what that violates."""
    right = expect(case, Contract(), "A")
    ranks = []
    for rank in range(case.world_size):
        tensors = {}
        for (name, of), values in given.items():
            if of == rank:
                dtype = right.tensors[name][rank].dtype
                stored = elements.round_to(values, dtype)
                array = stored.astype(np.float32 if dtype == "bfloat16" else dtype)
                if dtype == "bfloat16":
                    array = (array.view(np.uint32) >> 16).astype(np.uint16)
                tensors[name] = Tensor(dtype=dtype, array=array, requires_grad=True)
        for name, by_rank in (tracked or right.tracked).items():
            tensors[name] = Tensor(dtype="int64", array=np.array(by_rank[rank]))
        ranks.append(
            RankObservation(rank=rank, ending="returned", tensors=tensors, digest=right.digests[rank])
        )
    observation = Observation(ranks=tuple(ranks))
    verdicts = judge(case, observation, right, Contract(), only=(*NUMERIC, "nonfinite"))
    return Seen(case, observation, tuple(v.property for v in verdicts if v.outcome is Outcome.VIOLATED))

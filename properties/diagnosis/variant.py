"""A variant: in which respects a subject with a known fault differs from a right one, as data and weights.

`properties.diagnosis.prediction` walks a case with it, `properties.diagnosis.causes` lists the known ones.
The default is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from properties.case import Case

Floats = NDArray[np.float64]
Scope = Literal["group", "world"]


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of a process group, as weights may depend on them.

    Attributes:
        counts: Values a channel, (R,).
        samples: Batch sizes, (R,).
        group: Which of them belong to the group proper, (R,); all unless the scope is wider.
        dtype, param_dtype: Of the case.
    """

    counts: Floats
    samples: Floats
    group: NDArray[np.bool_]
    dtype: str
    param_dtype: str

    @property
    def total(self) -> float:
        """Values a channel over all ranks; at least 1."""
        return float(max(self.counts.sum(), 1.0))

    @property
    def filled(self) -> Floats:
        """1 for a rank with values, 0 for one without, (R,)."""
        return (self.counts > 0).astype(np.float64)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.counts)

    def rows(self, weights: Any) -> Floats:
        """Return the same weights (R,) for every rank that computes, as (R, R)."""
        return np.broadcast_to(np.asarray(weights, np.float64), (self.size, self.size)).copy()


Weigh = Callable[[Ranks], Floats]
"""From the ranks to (R, R): a row for each rank that computes."""


def by_count(ranks: Ranks) -> Floats:
    """Return n_r / n."""
    return ranks.rows(ranks.counts / ranks.total)


def over_total(ranks: Ranks) -> Floats:
    """Return 1 / n."""
    return ranks.rows(1.0 / ranks.total)


def own(ranks: Ranks) -> Floats:
    """Return the identity: each rank its own."""
    return np.eye(ranks.size)


def none(ranks: Ranks) -> Floats:
    """Return zeros."""
    return np.zeros((ranks.size, ranks.size))


@dataclass(frozen=True, slots=True)
class Merge:
    """How the ranks' means and variances are combined; see `reference.variants`.

    The center is that of the between-rank term: the combined mean itself unless said.
    """

    mean: Weigh = by_count
    within: Weigh = by_count
    between: Weigh = by_count
    center: Weigh | None = None


def _ones(ranks: Ranks) -> Floats:
    return np.ones(ranks.size)


def _usual_momentum(case: Case, tracked: int, momentum: float) -> float:
    del case, tracked
    return momentum


def _bessel(total: int, local: int, ranks: int) -> tuple[float, float]:
    """Return n and n - 1."""
    del local, ranks
    return float(total), float(total - 1)


def _everywhere(case: Case, rank: int) -> bool:
    del case, rank
    return True


def _once(case: Case, k: int, total: int) -> int:
    """Return how often step k updates the buffers: once in training, unless the batch is empty."""
    return int(case.steps[k].mode == "train" and total > 0)


def _counted(case: Case, k: int, total: int) -> int:
    del total
    return int(case.steps[k].mode == "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What differs; every default is right.

    Attributes:
        scope: Whose statistics: the process group's, or the whole world's.
        merge: Of what normalises.
        tracked: Of what goes into the buffers; None for the same.
        root, derived, consistent: See `reference.variants.Formula`.
        cotangent, projection: Weights of the backward sums.
        weight, bias: Weights of the ranks' parameter gradients.
        sums_in_eval: Weights of both backward sums in evaluation, with `corrected`; None for the same.
        scale: (R,) factors of grad_input.
        exchanged_moments: A rank's mean is taken for its `variance` or its `squares`, and the reverse.
        swapped_sums: The reduced sums of g and of g xhat are taken for each other.
        parameters: From the rows weight, bias, running mean, its error, running variance, its error to
            other ones, (6, C).
        parameters_in: The modes in which it does so.
        swapped_gradients: The gradients of weight and bias are taken for each other.
        eps: From the case to another epsilon.
        inputs: From the case, a rank, its input and cotangent (N, C, positions) to other ones.
        momentum: From the case, the count of tracked batches and the right momentum to another one.
        bessel: From the group's count, the rank's, and the number of ranks to n and what divides it.
        updates_on: Whether a rank of the group updates its buffers, given the case.
        updates: How often the buffers are updated in the forward of step k, given the group's count.
        recomputed: How often a recomputed forward updates them; a contract of a single update takes one off.
        counted: How far `num_batches_tracked` advances in the forward of step k.
        running_in_training: Training normalises with the running buffers.
        batch_in_eval: Evaluation normalises with the batch of the `group` or the `own` one.
        training_gradient_in_eval: The backward of an evaluation is that of training.
        corrected: The backward of an evaluation has the correction terms of training.
        exchanged: The new mean goes into the variance's buffer, and the new variance into the mean's.
        tracks: What goes into running_var: the variance, `invstd`, 1 / sqrt(var + eps), or var + `eps`.
        forgets: Parameter gradients do not accumulate.
        contract, grade: What the prediction's bounds are for, in place of the subject's.
    """

    scope: Scope = "group"
    merge: Merge = Merge()
    tracked: Merge | None = None
    root: str = "inside"
    derived: bool = False
    consistent: bool = False
    cotangent: Weigh = over_total
    projection: Weigh = over_total
    sums_in_eval: Weigh | None = None
    weight: Weigh = own
    bias: Weigh = own
    scale: Callable[[Ranks], Floats] = _ones
    exchanged_moments: Literal["", "variance", "squares"] = ""
    swapped_sums: bool = False
    parameters: Callable[[Floats], Floats] | None = None
    parameters_in: tuple[str, ...] = ("train", "eval")
    swapped_gradients: bool = False
    eps: Callable[[Case], float] | None = None
    inputs: Callable[[Case, int, Floats, Floats], tuple[Floats, Floats]] | None = None
    momentum: Callable[[Case, int, float], float] = _usual_momentum
    bessel: Callable[[int, int, int], tuple[float, float]] = _bessel
    updates_on: Callable[[Case, int], bool] = _everywhere
    updates: Callable[[Case, int, int], int] = _once
    recomputed: int = 1
    counted: Callable[[Case, int, int], int] = _counted
    running_in_training: bool = False
    batch_in_eval: Literal["", "group", "own"] = ""
    training_gradient_in_eval: bool = False
    corrected: bool = False
    exchanged: bool = False
    tracks: Literal["", "invstd", "eps"] = ""
    forgets: bool = False
    contract: dict[str, str] = field(default_factory=dict)
    grade: str = ""


RIGHT = Variant()

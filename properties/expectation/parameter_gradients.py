"""Gradients of weight and bias: each rank's own, reduced if the contract says so, accumulated and stored.

They are reduced in training only: an evaluation does not communicate (`eval_is_local`), and what reduces them
is the backward of a synchronised step, which exchanges their sums anyway.
"""

from __future__ import annotations

import numpy as np

from properties.expectation.schedule_state import Estimate, Walk, accumulation_dtype, decided, put, storing
from reference.rounding import FACTS, DtypeFacts


def store_grad_parameter(walk: Walk, k: int, name: str) -> None:
    """Put the gradient of parameter `name` (weight, bias) of step k, accumulated so far and as stored."""
    case, contract = walk.case, walk.contract
    accumulated = accumulation_dtype(case, contract)
    estimates = {rank: _own_gradient(walk, k, name, rank) for rank in walk.group}
    if contract.affine_grad != "local" and case.steps[k].mode == "train":
        estimates = _reduced(estimates, FACTS[accumulated], mean=contract.affine_grad == "mean")
    u, underflow = storing(case.param_dtype, accumulated)
    for rank, (value, bound) in estimates.items():
        stored = u * (np.abs(value) + bound) + underflow if u else 0.0
        total = Estimate(value, np.where(np.isnan(value), 0.0, bound + stored))
        before = walk.sums.get((name, rank))
        if before is not None:
            total = _added(before, total, FACTS[case.param_dtype])
        walk.sums[name, rank] = total
        optional = case.at(k).count_of(rank) == 0
        put(walk, f"grad_{name}.{k}", rank, *total, dtype=case.param_dtype, optional=optional)


def _own_gradient(walk: Walk, k: int, name: str, rank: int) -> Estimate:
    """Return the rank's own gradient before storing; an empty rank's is zero.

    An empty rank may compute that of the weight as an empty sum times an invstd, which is NaN where that, or
    the mean, is not finite: there it is undecided.
    """
    step, c = walk.steps[k][rank], walk.case.channels
    value = np.array(getattr(step.output, f"grad_{name}")[step.slot, :c])
    bound = np.array(getattr(step.output, f"grad_{name}_bound")[step.slot, :c])
    poisoned = step.poisoned if name == "weight" else np.zeros(c, np.bool_)
    if walk.case.at(k).count_of(rank) == 0:
        undecided = poisoned | (step.unsettled if name == "weight" else np.zeros(c, np.bool_))
        return Estimate(np.zeros(c), np.where(undecided | np.isinf(bound), np.inf, 0.0))
    return decided(value, bound, poisoned=poisoned)


def _reduced(estimates: dict[int, Estimate], facts: DtypeFacts, *, mean: bool) -> dict[int, Estimate]:
    """Return the sum or mean of the ranks' gradients for each rank; a rank adds one rounding."""
    ranks = len(estimates)
    value = np.sum([value for value, _ in estimates.values()], axis=0)
    magnitude = np.sum([np.abs(value) + bound for value, bound in estimates.values()], axis=0)
    bound = np.sum([bound for _, bound in estimates.values()], axis=0) + ranks * facts.u * magnitude
    bound = bound + ranks * facts.smallest_normal  # a rank's part of a mean may underflow
    bound = np.where(magnitude >= facts.largest, np.inf, bound)  # and a partial sum overflow
    if mean:
        value, bound = value / ranks, bound / ranks + facts.u * magnitude / ranks
    return dict.fromkeys(estimates, Estimate(value, bound))


def _added(before: Estimate, new: Estimate, facts: DtypeFacts) -> Estimate:
    value, carried = before.value + new.value, before.bound + new.bound
    carried[np.abs(before.value) + before.bound >= facts.overflow] = np.inf  # it was stored as infinity
    poisoned = np.isnan(value)
    return Estimate(
        value, np.where(poisoned, 0.0, carried + facts.u * (np.abs(value) + carried) + facts.smallest_normal)
    )

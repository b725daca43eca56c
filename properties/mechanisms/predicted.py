"""Prediction: what a subject with known mechanisms gives for a case, tensor by tensor, within what bound."""

from __future__ import annotations

import numpy as np

from properties.case import Case
from properties.domain import Contract, Grade
from properties.expectation.expect import refusals, start
from properties.expectation.expected import Expected, Interval
from properties.mechanisms.follower import MechanismFollower, Sites
from properties.values import elements
from reference.host import precise


def predict(case: Case, contract: Contract, grade: Grade, *, device: str = "cpu", sites: Sites) -> Expected:
    """Return what a subject with the mechanisms of `sites` gives, and within what bound.

    Args:
        case: The case; a wrong one, or one with a gradient on some ranks only, has no tensors.
        contract: Which convention is right.
        grade: The error model that the bounds are for.
        device: cpu or cuda; selects the table of operations' errors.
        sites: Where each mechanism may act.
    """
    refusing = _refusals(case, sites)
    tensors: dict[str, dict[int, Interval]] = {}
    tracked: dict[str, dict[int, int]] = {}
    if not case.ragged_grad and not case.wrong:
        drawn = elements.drawn(case, range(case.world_size), channels_last=True)
        # What overflows on the way is infinite or NaN, and told by that; warnings would reach the user.
        with precise(), np.errstate(all="ignore"):
            for group in case.process_groups:
                if any(rank in refusing for rank in group):
                    continue
                walk = start(case, contract, grade, device=device, group=group, inputs=drawn)
                MechanismFollower(walk, sites).follow()
                for name, by_rank in walk.tensors.items():
                    tensors.setdefault(name, {}).update(by_rank)
                for name, counts in walk.tracked.items():
                    tracked.setdefault(name, {}).update(counts)
    return Expected(tensors=tensors, tracked=tracked, refusals=refusing, grade=grade)


def _refusals(case: Case, sites: Sites) -> dict[int, str]:
    """Return the ranks that refuse although a group's single value may be accepted in training."""
    refusing = refusals(case)
    if case.wrong:
        return refusing
    for rank in {rank for rank, _ in sites.get("accepted-single-value", {})}:
        alone = not case.tracking and any(
            step.mode == "eval" and sized.count_of(rank) == 1
            for step, sized in zip(case.steps, case.by_step, strict=True)
        )
        if not alone:
            refusing.pop(rank, None)
    return refusing

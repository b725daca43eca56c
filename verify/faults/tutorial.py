"""Aggregation of statistics as tutorials show it: one subject a flaw, otherwise right, and all at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.subjects.aggregated import (
    Aggregated,
    Moments,
    Normalise,
    Statistics,
    inverse_deviation,
)
from verify.subjects.aggregated import merge as right_merge


class FreshZeros(Aggregated):
    """All-reduces fresh zero tensors instead of the local moments."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        mean, var = torch.zeros_like(right.mean), torch.zeros_like(right.var)
        if group is not None:
            dist.all_reduce(mean, group=group)
            dist.all_reduce(var, group=group)
        return Statistics(right.count, mean, var, right.wants_gradient)


class NoBetweenRank(Aggregated):
    """Averages the ranks' variances by their counts, without what their means differ by."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        within = torch.stack([part.m2 for part in parts]).sum(0) / max(right.count, 1)
        return Statistics(right.count, right.mean, within, right.wants_gradient)


class UnweightedRanks(Aggregated):
    """Weighs ranks equally, whatever their counts; a rank without values is left out."""

    def merge(self, parts: list[Moments]) -> Statistics:
        filled = [part for part in parts if part.count]
        equal = [Moments(1, part.mean, part.m2 / part.count, part.wants_gradient) for part in filled]
        right = right_merge(parts)
        if not equal:
            return right
        flawed = right_merge(equal)
        return Statistics(right.count, flawed.mean, flawed.var, right.wants_gradient)


class DetachedStatistics(Aggregated):
    """Has no gradient through the collective: mean and variance are constants to the backward."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        del group
        invstd = inverse_deviation(statistics.var, self.eps)
        return Normalise.apply(x, self.weight, self.bias, statistics.mean, invstd, None, None, None)


class NoRunningBuffers(Aggregated):
    """Never updates its buffers."""

    def track(self, statistics: Statistics) -> None:
        del statistics


class Tutorial(FreshZeros, NoBetweenRank, UnweightedRanks, DetachedStatistics, NoRunningBuffers):
    """All flaws at once."""

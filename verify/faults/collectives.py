"""Faults of when and how ranks communicate, and of buffers that differ by rank, otherwise right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.subjects.aggregated import (
    Aggregated,
    Statistics,
    gather_moments,
    local_moments,
)
from verify.subjects.aggregated import merge as right_merge


class BackwardByLocalFlag(Aggregated):
    """Takes part in the backward's collective only if its own input requires a gradient."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        return super().normalise(x, statistics, group if x.requires_grad else None)


class FrozenWeightSkips(Aggregated):
    """Leaves the backward's collective out where the weight requires no gradient."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        frozen = self.weight is not None and not self.weight.requires_grad
        return super().normalise(x, statistics, None if frozen else group)


class SyncsWithoutBuffers(Aggregated):
    """Synchronises in evaluation where it has no running buffers."""

    def _own_statistics(self, x: Tensor) -> Statistics:
        super()._own_statistics(x)
        with torch.no_grad():
            return self.statistics(x, self._group(), wants_gradient=False)


class EvaluationBarrier(Aggregated):
    """Waits for the other ranks in evaluation, too."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        group = self._group()
        if not self.training and group is not None:
            dist.all_reduce(torch.zeros(1), group=group)
        return y


class ExtraReduceIfEmpty(Aggregated):
    """A rank without values issues one more all_reduce, of the size of the backward's."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        if group is not None and x.numel() == 0:
            dist.all_reduce(right.mean.new_zeros(2 * right.mean.numel()), group=group)
        return right


class ConstantInputSkips(Aggregated):
    """Skips the collectives on a rank all of whose values of a channel are equal."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        own = local_moments(x)
        if own.count and not own.m2.any():
            return right_merge([own])
        return super().statistics(x, group, wants_gradient=wants_gradient)


class LargeBatchSkips(Aggregated):
    """Takes more than eight samples for enough, and skips the collective on such a rank."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        if x.shape[0] > 8:
            return right_merge([replace(local_moments(x), wants_gradient=wants_gradient)])
        return super().statistics(x, group, wants_gradient=wants_gradient)


class OrderByRank(Aggregated):
    """Exchanges means and M2 by two collectives of one size, whose order differs on odd ranks."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        own = replace(local_moments(x), wants_gradient=wants_gradient)
        if group is None:
            return self.merge([own])
        odd = dist.get_rank(group) % 2 == 1
        pair = (own.m2, own.mean) if odd else (own.mean, own.m2)
        one, other = (gather_moments(replace(own, mean=part, m2=part), group) for part in pair)
        first, second = (other, one) if odd else (one, other)
        return self.merge([replace(a, m2=b.m2) for a, b in zip(first, second, strict=True)])


class OwnRankFirst(Aggregated):
    """Merges its own moments first, then those of the others: another order on each rank."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        own = replace(local_moments(x), wants_gradient=wants_gradient)
        if group is None:
            return self.merge([own])
        parts, rank = gather_moments(own, group), dist.get_rank(group)
        return self.merge([parts[rank], *parts[:rank], *parts[rank + 1 :]])


class FirstRankInFloat64(Aggregated):
    """The group's first rank merges the moments in float64."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        own = replace(local_moments(x), wants_gradient=wants_gradient)
        if group is None or dist.get_rank(group):
            return super().statistics(x, group, wants_gradient=wants_gradient)
        wide = [replace(p, mean=p.mean.double(), m2=p.m2.double()) for p in gather_moments(own, group)]
        found, dtype = self.merge(wide), own.mean.dtype
        return replace(found, mean=found.mean.to(dtype), var=found.var.to(dtype))


class TracksItsOwn(Aggregated):
    """Normalises with the group's statistics, and tracks those of the rank's own batch."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        self._own = right_merge([local_moments(x)])
        return super().statistics(x, group, wants_gradient=wants_gradient)

    def track(self, statistics: Statistics) -> None:
        own = self._own
        super().track(replace(statistics, mean=own.mean, var=own.var) if own.count else statistics)


class FirstRankTracks(Aggregated):
    """Updates mean and variance on the group's first rank only, as if a wrapper sent them to the others."""

    def track(self, statistics: Statistics) -> None:
        group = self._group()
        first = group is None or dist.get_rank(group) == 0
        super().track(statistics if first else replace(statistics, count=0))


class EmptyRankDoesNotTrack(Aggregated):
    """A rank without values leaves its buffers alone in a step that changes those of the others."""

    def _train(self, x: Tensor) -> Tensor:
        self._empty = x.numel() == 0
        return super()._train(x)

    def track(self, statistics: Statistics) -> None:
        super().track(replace(statistics, count=0) if self._empty else statistics)

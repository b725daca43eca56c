"""Faults of process groups: statistics over the wrong ranks, otherwise right.

Each keeps the count of the whole batch where it is not the fault itself, so that refusals stay right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import Tensor

from verify.subjects.aggregated import (
    Aggregated,
    Moments,
    Statistics,
    gather_moments,
    local_moments,
)
from verify.subjects.aggregated import merge as right_merge


def _of(parts: list[Moments], right: Statistics) -> Statistics:
    """Return the mean and variance of `parts` in place of the right ones, unless they are empty."""
    flawed = right_merge(parts)
    return replace(right, mean=flawed.mean, var=flawed.var) if flawed.count else right


class WorldForGroup(Aggregated):
    """Forgets its process group and communicates in the default one, forward and backward."""

    def _group(self) -> Any:
        return dist.group.WORLD if dist.get_world_size() > 1 else None


class WorldInBackward(Aggregated):
    """Reduces the backward's sums over the default group, with the count of its own."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        everyone = dist.group.WORLD if statistics.wants_gradient and dist.get_world_size() > 1 else None
        return super().normalise(x, statistics, everyone)


class WorldInGather(Aggregated):
    """Gathers the moments of the default group, and merges as many of them as its own group has ranks."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        if dist.get_world_size() == 1:
            return super().statistics(x, group, wants_gradient=wants_gradient)
        own = replace(local_moments(x), wants_gradient=wants_gradient)
        everyone = gather_moments(own, dist.group.WORLD)
        size = 1 if group is None else dist.get_world_size(group)
        mine = [everyone[rank] for rank in dist.get_process_group_ranks(self.process_group)]
        return _of(everyone[:size], right_merge(mine))


class SizeOfNoGroup(Aggregated):
    """Takes the group's size for the backward's count from the argument, which by default is no group."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if group is not None and self.process_group is None:
            statistics = replace(statistics, count=statistics.count // dist.get_world_size(group))
        return super().normalise(x, statistics, group)


class DefaultGroupLocal(Aggregated):
    """Does not synchronise where the process group is left default: it was looked up before it existed."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        return _of([local_moments(x)], right) if self.process_group is None else right

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if group is not None and self.process_group is None:
            statistics, group = replace(statistics, count=x.numel() // x.shape[1]), None
        return super().normalise(x, statistics, group)


class PairsOfLargerGroups(Aggregated):
    """In a group of four or more ranks, takes the statistics of the rank and its neighbour only."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        if group is None or dist.get_world_size(group) < 4:
            return super().statistics(x, group, wants_gradient=wants_gradient)
        parts = gather_moments(replace(local_moments(x), wants_gradient=wants_gradient), group)
        first = dist.get_rank(group) & ~1
        return _of(parts[first : first + 2], right_merge(parts))


class GlobalRankAsIndex(Aggregated):
    """Puts its own moments where its global rank says, not its rank in the group."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        own = replace(local_moments(x), wants_gradient=wants_gradient)
        parts = [own] if group is None else gather_moments(own, group)
        right = right_merge(parts)
        parts[dist.get_rank() % len(parts)] = own
        return _of(parts, right)


class OddRankDropped(Aggregated):
    """Merges ranks two by two and forgets the one that is left over."""

    def merge(self, parts: list[Moments]) -> Statistics:
        return _of(parts[: len(parts) // 2 * 2] or parts, right_merge(parts))


class FirstRankOnly(Aggregated):
    """Normalises with the statistics of the group's first rank that has values."""

    def merge(self, parts: list[Moments]) -> Statistics:
        filled = [part for part in parts if part.count]
        return _of(filled[:1] or parts, right_merge(parts))


class LastRankLeftOut(Aggregated):
    """Leaves the group's last rank out of the statistics."""

    def merge(self, parts: list[Moments]) -> Statistics:
        return _of(parts[:-1] or parts, right_merge(parts))


class SingleGroupSynchronised(Aggregated):
    """Takes a group of a single rank for no group, and communicates in the default one."""

    def _group(self) -> Any:
        return super()._group() or (dist.group.WORLD if dist.get_world_size() > 1 else None)

"""Faults of repetition: recomputed forwards, what an earlier step leaves, what is not the same twice."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from verify.subjects.aggregated import Aggregated, Statistics, local_moments


def _recomputing() -> bool:
    """Return whether this forward runs inside a backward."""
    return int(torch._C._current_graph_task_id()) != -1


class RecomputedNotTracked(Aggregated):
    """Leaves the buffers alone when a forward is recomputed, where torch's batch norm updates them."""

    def track(self, statistics: Statistics) -> None:
        if not _recomputing():
            super().track(statistics)


class RecomputedCountedTwice(Aggregated):
    """Counts a recomputed forward twice."""

    def track(self, statistics: Statistics) -> None:
        super().track(statistics)
        if _recomputing():
            self.num_batches_tracked.add_(1)


class RecomputedLocally(Aggregated):
    """Does not communicate when a forward is recomputed: the backward reads this rank's statistics."""

    last: Statistics | None = None

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        if self.last is not None and _recomputing():
            own = super().statistics(x, None, wants_gradient=wants_gradient)
            return Statistics(self.last.count, own.mean, own.var, self.last.wants_gradient)
        self.last = super().statistics(x, group, wants_gradient=wants_gradient)
        return self.last


class CachedByShape(Aggregated):
    """Keeps the statistics of the first training batch of a shape, and uses them for later ones."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cached: dict[torch.Size, Statistics] = {}

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        return self.cached.setdefault(x.shape, right)


class PreviousStatistics(Aggregated):
    """Normalises with the statistics of the previous training step, from the second on."""

    previous: Statistics | None = None

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        stale = self.previous or statistics
        if self.training:
            self.previous = statistics
        return super().normalise(x, stale if self.training else statistics, group)


class FirstStepSynchronized(Aggregated):
    """Takes the statistics of all ranks in the first step, and its own in later ones."""

    steps = 0

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        self.steps += 1
        own = local_moments(x)
        if self.steps == 1 or not own.count:
            return right
        return Statistics(right.count, own.mean, own.m2 / own.count, right.wants_gradient)


class EvaluationCached(Aggregated):
    """Keeps the scale and shift of its first evaluation, and uses them for later ones."""

    cached: tuple[Tensor, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            return super().forward(input)
        now = (self.running_mean.clone(), self.running_var.clone())
        self.cached = self.cached or now
        try:
            self._exchange(self.cached)
            return super().forward(input)
        finally:
            self._exchange(now)

    def _exchange(self, values: tuple[Tensor, Tensor]) -> None:
        for buffer, value in zip((self.running_mean, self.running_var), values, strict=True):
            buffer.copy_(value)


class SharedTag(Aggregated):
    """Looks up its statistics by a tag that all layers of a width share: another layer's are found."""

    inbox: ClassVar[dict[tuple[int, torch.dtype], Statistics]] = {}

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        found = self.inbox.setdefault((self.num_features, right.mean.dtype), right)
        return Statistics(right.count, found.mean, found.var, right.wants_gradient)


class GroupEachForward(Aggregated):
    """Creates a process group at every forward, which all ranks of the world must do together."""

    def _group(self) -> Any:
        group = super()._group()
        if group is None:
            return None
        return dist.new_group(dist.get_process_group_ranks(group))


class RandomSums(Aggregated):
    """Sums its own batch in an order that is random."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        generator = torch.Generator()
        generator.seed()
        shuffled = x[torch.randperm(x.shape[0], generator=generator)]
        return super().statistics(shuffled, group, wants_gradient=wants_gradient)


class RandomNoise(Aggregated):
    """Perturbs invstd in its last bit, at random."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        up = torch.rand(statistics.var.shape, generator=generator) < 0.5
        var = torch.where(up, statistics.var.nextafter(statistics.var * 2), statistics.var)
        return super().normalise(
            x, Statistics(statistics.count, statistics.mean, var, statistics.wants_gradient), group
        )

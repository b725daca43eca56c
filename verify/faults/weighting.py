"""Ranks weighed wrongly: in the statistics, in a part of them, or in the buffers only; one subject a flaw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.subjects.aggregated import Aggregated, Moments, Statistics, local_moments
from verify.subjects.aggregated import merge as right_merge


def weighed(parts: list[Moments], weights: Sequence[Any]) -> Statistics:
    """Return the statistics of `parts`, each weighing as much as `weights` says; the count stays right."""
    right = right_merge(parts)
    other = [
        replace(part, count=weight, m2=part.m2 * (weight / part.count))
        for part, weight in zip(parts, weights, strict=True)
        if part.count and weight
    ]
    if not other:
        return right
    wrong = right_merge(other)
    return replace(right, mean=wrong.mean, var=wrong.var)


class OwnCountForAll(Aggregated):
    """Weighs all ranks by the count of the rank itself, which is also what it corrects the variance by."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        self.assumed = dist.get_world_size(group) * (x.numel() // x.shape[1]) if group is not None else 0
        return super().statistics(x, group, wants_gradient=wants_gradient)

    def merge(self, parts: list[Moments]) -> Statistics:
        return weighed(parts, [1] * len(parts))

    def track(self, statistics: Statistics) -> None:
        count = max(self.assumed, 2) if self.assumed and statistics.count else statistics.count
        super().track(replace(statistics, count=count))


class EqualWithEmpty(Aggregated):
    """Averages means and variances over all ranks, those without values (zeros) too."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        whole = [replace(part, count=1, m2=part.m2 / max(part.count, 1)) for part in parts]
        equal = right_merge(whole)
        return replace(right, mean=equal.mean, var=equal.var)


class BySamples(Aggregated):
    """Weighs a rank by its samples N, whatever its spatial size."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        self.samples = [x.shape[0]]
        if group is not None:
            samples = torch.zeros(dist.get_world_size(group), device=x.device)
            samples[dist.get_rank(group)] = x.shape[0]
            dist.all_reduce(samples, group=group)
            self.samples = samples.tolist()
        return super().statistics(x, group, wants_gradient=wants_gradient)

    def merge(self, parts: list[Moments]) -> Statistics:
        return weighed(parts, self.samples) if len(parts) > 1 else right_merge(parts)


class UnweightedVariance(Aggregated):
    """Weighs ranks by their counts in the mean, and equally in the variance."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        filled = [part for part in parts if part.count]
        if not filled:
            return right
        squares = [part.m2 / part.count + (part.mean - right.mean).square() for part in filled]
        return replace(right, var=torch.stack(squares).mean(0))


class MeanOfVariances(Aggregated):
    """Takes for the variance the plain mean of the ranks' variances."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        variances = [part.m2 / part.count for part in parts if part.count]
        return replace(right, var=torch.stack(variances).mean(0)) if variances else right


class UnweightedBuffers(Aggregated):
    """Normalises rightly, but tracks statistics in which all ranks weigh the same."""

    def merge(self, parts: list[Moments]) -> Statistics:
        self.tracked = weighed(parts, [1] * len(parts))
        return right_merge(parts)

    def track(self, statistics: Statistics) -> None:
        super().track(replace(statistics, mean=self.tracked.mean, var=self.tracked.var))


class BuffersAveraged(Aggregated):
    """Normalises rightly, but tracks the average of the ranks' means and unbiased variances."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        filled = [part for part in parts if part.count]
        self.tracked = right
        if filled:
            mean = torch.stack([part.mean for part in filled]).mean(0)
            unbiased = torch.stack([part.m2 / max(part.count - 1, 1) for part in filled]).mean(0)
            self.tracked = replace(right, mean=mean, var=unbiased * ((right.count - 1) / right.count))
        return right

    def track(self, statistics: Statistics) -> None:
        super().track(self.tracked)


class RankLocalBuffers(Aggregated):
    """Normalises rightly, but each rank tracks the statistics of its own batch."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        self.own = right_merge([local_moments(x)])
        return super().statistics(x, group, wants_gradient=wants_gradient)

    def track(self, statistics: Statistics) -> None:
        super().track(self.own if self.own.count != 1 else replace(self.own, count=2))


class ThirdLikeSecond(Aggregated):
    """Weighs every rank from the third on by the count of the second."""

    def merge(self, parts: list[Moments]) -> Statistics:
        counts = [part.count for part in parts]
        return weighed(parts, counts[:2] + counts[1:2] * (len(parts) - 2))


class OddLeftover(Aggregated):
    """Merges ranks in pairs, and loses the last of an odd number of three or more."""

    def merge(self, parts: list[Moments]) -> Statistics:
        filled = [part for part in parts if part.count]
        right = right_merge(parts)
        if len(filled) < 3 or len(filled) % 2 == 0:
            return right
        wrong = right_merge(filled[:-1])
        return replace(right, mean=wrong.mean, var=wrong.var)


class OwnOrder(Aggregated):
    """Each rank merges the ranks' moments in an order of its own, beginning with itself."""

    first = 0

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        self.first = 0 if group is None else dist.get_rank(group)
        return super().statistics(x, group, wants_gradient=wants_gradient)

    def merge(self, parts: list[Moments]) -> Statistics:
        first = self.first % len(parts)
        return right_merge(parts[first:] + parts[:first])


class EmptyAsOne(Aggregated):
    """Weighs a rank without values like a rank with the single value zero."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        if not right.count:
            return right
        wrong = right_merge([replace(part, count=max(part.count, 1)) for part in parts])
        return replace(right, mean=wrong.mean, var=wrong.var)

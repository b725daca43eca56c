"""Faults of ranks without values and of tiny counts, otherwise right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.subjects.aggregated import (
    Aggregated,
    Moments,
    Normalise,
    Statistics,
    gather_moments,
    local_moments,
)
from verify.subjects.aggregated import merge as right_merge


class EmptyCrash(Aggregated):
    """Takes the moments of its values before it looks whether there are any, and raises."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        if x.numel() == 0:
            raise RuntimeError("Expected values to take the moments of, but the input has none.")
        return super().statistics(x, group, wants_gradient=wants_gradient)


class EmptyWithoutBackward(Aggregated):
    """On a rank without values the output has no autograd path, so that its backward sends nothing."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        return super().normalise(x, statistics, group) if x.numel() else x.detach().clone()


class EmptySendsInputDtype(Aggregated):
    """A rank without values sends its zeros in the input's dtype, the others in float32."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        own = replace(local_moments(x), wants_gradient=wants_gradient)
        dtype = own.mean.dtype
        if not own.count:
            own = replace(own, mean=own.mean.to(x.dtype), m2=own.m2.to(x.dtype))
        found = self.merge([own] if group is None else gather_moments(own, group))
        return replace(found, mean=found.mean.to(dtype), var=found.var.to(dtype))


class _InputDtypeBackward(Normalise):
    """`Normalise`, but a rank without values reduces its sums in the input's dtype."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if dy.numel() or ctx.group is None:
            found: tuple[Tensor | None, ...] = Normalise.backward(ctx, dy)
            return found
        x, weight, _, _ = ctx.saved_tensors
        dist.all_reduce(x.new_zeros(2 * x.shape[1]), group=ctx.group)
        zeros = None if weight is None else torch.zeros_like(weight)
        return torch.zeros_like(x), zeros, None, None, None, None, None, None


class EmptyReducesInputDtype(Aggregated):
    """In the backward a rank without values reduces zeros in the input's dtype, the others float32."""

    rule = _InputDtypeBackward


class EmptyRoundsStatistics(Aggregated):
    """A rank without values keeps the merged statistics in the input's dtype."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        if x.numel():
            return right
        dtype = right.mean.dtype
        return replace(right, mean=right.mean.to(x.dtype).to(dtype), var=right.var.to(x.dtype).to(dtype))


class MergeDividesByZero(Aggregated):
    """Merges one rank after the other and divides by the count so far, which is zero after an empty rank."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        if not right.count:
            return right
        n, mean, m2 = right.mean.new_zeros(()), torch.zeros_like(right.mean), torch.zeros_like(right.var)
        for part in parts:
            delta, total = part.mean - mean, n + part.count
            mean = mean + delta * (part.count / total)
            m2 = m2 + part.m2 + delta * delta * (n * part.count / total)
            n = total
        return replace(right, mean=mean, var=m2 / n)


class EmptyMeanIsNaN(Aggregated):
    """The mean of no values, 0/0, is not filtered from the merge."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        if right.count and any(not part.count for part in parts):
            return replace(right, mean=right.mean * float("nan"), var=right.var * float("nan"))
        return right


class EmptyCountsAsOne(Aggregated):
    """A rank without values counts as one value, zero."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        if not right.count:
            return right
        counted = [replace(part, count=max(part.count, 1)) for part in parts]
        flawed = right_merge(counted)
        return replace(right, mean=flawed.mean, var=flawed.var)


class EmptyOutputShape(Aggregated):
    """A rank without values returns (0, C), whatever the spatial sizes."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        return y if x.numel() else y.flatten(1)[:, :1].reshape(0, -1)


class EmptyOutputDtype(Aggregated):
    """A rank without values returns its output in the dtype of the statistics."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        return y if x.numel() else y.to(statistics.mean.dtype)


class AllEmptyRaises(Aggregated):
    """Refuses a batch without values on any rank."""

    def _check_count(self, count: int) -> None:
        super()._check_count(count)
        if count == 0:
            raise ValueError("Expected more than 1 value a channel in training, but got 0 over all ranks.")


class LocalSizeCheck(Aggregated):
    """Refuses one value a channel on a rank, though the group has more."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        if x.numel() == x.shape[1]:
            raise ValueError("Expected more than 1 value a channel in training, but got 1.")
        return super().statistics(x, group, wants_gradient=wants_gradient)


class GlobalOneAccepted(Aggregated):
    """Accepts one value a channel over all ranks, whose unbiased variance is 0/0."""

    def _check_count(self, count: int) -> None:
        pass

    def track(self, statistics: Statistics) -> None:
        if statistics.count == 1:
            statistics = replace(statistics, count=2, var=statistics.var / 0)
        super().track(statistics)


class TwoDimensionsRefused(Aggregated):
    """Refuses an input (N, C) without spatial sizes."""

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if x.dim() == 2:
            raise ValueError("Expected an input of 3 or more dimensions, but got 2.")


class TwoDimensionsCount(Aggregated):
    """In the backward of an input (N, C) the count is that of the spatial positions: one a rank."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if x.dim() == 2:
            statistics = replace(statistics, count=1 if group is None else dist.get_world_size(group))
        return super().normalise(x, statistics, group)


class SingleValueUnbiased(Aggregated):
    """A rank's M2 comes from its unbiased variance: of a single value it is 0/0."""

    def merge(self, parts: list[Moments]) -> Statistics:
        return right_merge([replace(part, m2=part.m2 / 0) if part.count == 1 else part for part in parts])

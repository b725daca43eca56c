"""The variance and its root: Bessel's correction, cancellation, and where eps goes; one subject a flaw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.subjects.aggregated import Aggregated, Moments, Statistics, gather_moments
from verify.subjects.aggregated import merge as right_merge
from verify.subjects.channels import columns


class Rescaled(Aggregated):
    """Tracks the biased variance times `factor`; what normalises stays right. Right itself."""

    def factor(self, count: int) -> float:
        """Return what the biased variance of `count` values is multiplied by."""
        return count / (count - 1)

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        self.local = x.numel() // x.shape[1]
        self.world = 1 if group is None else dist.get_world_size(group)
        self.dtype = x.dtype
        return super().statistics(x, group, wants_gradient=wants_gradient)

    def track(self, statistics: Statistics) -> None:
        n = statistics.count
        if n and self.factor(n) != n / (n - 1):
            statistics = replace(statistics, var=statistics.var * (self.factor(n) * (n - 1) / n))
        super().track(statistics)


class Biased(Rescaled):
    """Tracks the biased variance."""

    def factor(self, count: int) -> float:
        return 1.0


class LocalBessel(Rescaled):
    """Corrects the tracked variance by the rank's own count."""

    def factor(self, count: int) -> float:
        return self.local / max(self.local - 1, 1) if self.local else 1.0


class WorldTimesLocalBessel(Rescaled):
    """Corrects the tracked variance by the rank's own count times the number of ranks."""

    def factor(self, count: int) -> float:
        n = self.local * self.world
        return n / max(n - 1, 1) if n else 1.0


class HalfBessel(Rescaled):
    """Computes n / (n - 1) in the input's dtype."""

    def factor(self, count: int) -> float:
        n = torch.tensor(float(count), dtype=self.dtype)
        return float(n / (n - 1))


class SingleUncorrected(Rescaled):
    """Tracks the biased variance on a rank that has one value a channel itself."""

    def factor(self, count: int) -> float:
        return 1.0 if self.local == 1 else super().factor(count)


class PairUncorrected(Rescaled):
    """Tracks the biased variance of a batch of two values, which it takes for the smallest one."""

    def factor(self, count: int) -> float:
        return super().factor(count) if count > 2 else 1.0


class GlobalOneAccepted(Aggregated):
    """Accepts a batch of one value a channel, whose unbiased variance is 0 / 0."""

    def _check_count(self, count: int) -> None:
        pass

    def track(self, statistics: Statistics) -> None:
        if statistics.count == 1:
            statistics = replace(statistics, count=2, var=torch.full_like(statistics.var, torch.nan))
        super().track(statistics)


class NormalisesUnbiased(Aggregated):
    """Normalises with the unbiased variance; tracks it rightly."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        n = max(statistics.count, 2)
        return super().normalise(x, replace(statistics, var=statistics.var * (n / (n - 1))), group)


class OnePass(Aggregated):
    """Takes for the variance E[x^2] - E[x]^2 of the whole batch, negative where rounding makes it so."""

    def sums(self, x: Tensor) -> Tensor:
        """Return sum x and sum x^2, (2, C), in the dtype that they travel in."""
        data = columns(x)
        return torch.stack([data.sum(1), data.square().sum(1)])

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        sums = self.sums(x)
        if group is not None:
            dist.all_reduce(sums, group=group)
        mean, square = sums.to(right.mean.dtype) / max(right.count, 1)
        return replace(right, mean=mean, var=square - mean.square())


class OnePassClamped(OnePass):
    """Takes for the variance E[x^2] - E[x]^2 of the whole batch, not below zero."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        negative = super().statistics(x, group, wants_gradient=wants_gradient)
        return replace(negative, var=negative.var.clamp(min=0))


class OnePassLocal(Aggregated):
    """Takes each rank's variance as E[x^2] - E[x]^2, not below zero, and merges ranks rightly."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        data = columns(x)
        n = max(data.shape[1], 1)
        mean = data.sum(1) / n
        m2 = (data.square().sum(1) - n * mean.square()).clamp(min=0)
        own = Moments(data.shape[1], mean, m2, wants_gradient)
        return self.merge([own] if group is None else gather_moments(own, group))


class HalfSums(OnePassClamped):
    """Reduces x and x^2 of a half-precision input in half precision, also over the ranks."""

    def sums(self, x: Tensor) -> Tensor:
        return super().sums(x).to(x.dtype)

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        if x.dtype in (torch.float16, torch.bfloat16):
            return super().statistics(x, group, wants_gradient=wants_gradient)
        return Aggregated.statistics(self, x, group, wants_gradient=wants_gradient)


class ShiftOfFirstChannel(Aggregated):
    """Takes the variance as E[(x-s)^2] - E[x-s]^2, where s is the mean of channel 0 for all channels."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        shift = right.mean[:1]
        mean = right.mean - shift
        squares = right.var + mean.square()
        return replace(right, var=(squares - mean.square()).clamp(min=0))


class EpsOutsideRoot(Aggregated):
    """Divides by sqrt(var) + eps."""

    def invstd(self, var: Tensor) -> Tensor:
        deviation = var.sqrt() + self.eps
        return torch.where(deviation == 0, torch.zeros_like(deviation), 1 / deviation)


class EpsClamped(Aggregated):
    """Divides by sqrt(max(var, eps))."""

    def invstd(self, var: Tensor) -> Tensor:
        floor = torch.where(var.isnan(), var, var.clamp(min=self.eps))
        return torch.where(floor == 0, torch.zeros_like(floor), floor.rsqrt())


class EpsTwice(Aggregated):
    """Divides by sqrt(var + 2 eps)."""

    def invstd(self, var: Tensor) -> Tensor:
        return super().invstd(var + self.eps)


class EpsMissing(Aggregated):
    """Divides by sqrt(var)."""

    def invstd(self, var: Tensor) -> Tensor:
        return torch.where(var == 0, torch.zeros_like(var), var.rsqrt())


class EpsTracked(Aggregated):
    """Tracks var + eps."""

    def track(self, statistics: Statistics) -> None:
        super().track(replace(statistics, var=statistics.var + self.eps))


class EpsInHalf(Aggregated):
    """Rounds eps to the input's dtype."""

    def _train(self, x: Tensor) -> Tensor:
        exact: float = self.eps
        self.eps: float = float(torch.tensor(exact, dtype=x.dtype))
        try:
            return super()._train(x)
        finally:
            self.eps = exact


class SquareNotRoot(Aggregated):
    """Divides by (var + eps)^2."""

    def invstd(self, var: Tensor) -> Tensor:
        shifted = var + self.eps
        return torch.where(shifted == 0, torch.zeros_like(shifted), shifted.square().reciprocal())


class SentAsInvstd(Aggregated):
    """Sends each rank's variance as 1 / sqrt(var + eps)."""

    def merge(self, parts: list[Moments]) -> Statistics:
        return right_merge([self.decoded(part) for part in parts] if len(parts) > 1 else parts)

    def decoded(self, part: Moments) -> Moments:
        """Return `part` as it comes out of the message."""
        invstd = (part.m2 / max(part.count, 1) + self.eps).rsqrt()
        return replace(part, m2=part.count * (1 / invstd.square() - self.eps))


class ZeroInvstd(Aggregated):
    """Sends a variance of zero with eps 0 as invstd 0, which its peers decode as an infinite variance."""

    def merge(self, parts: list[Moments]) -> Statistics:
        if self.eps or len(parts) < 2:
            return right_merge(parts)
        lost = [torch.where(part.m2 == 0, torch.inf, part.m2) if part.count else part.m2 for part in parts]
        return right_merge([replace(part, m2=m2) for part, m2 in zip(parts, lost, strict=True)])


class NanDropped(Aggregated):
    """Keeps the variance from falling below zero with `fmax`, which returns the other number for NaN."""

    def merge(self, parts: list[Moments]) -> Statistics:
        right = right_merge(parts)
        return replace(right, var=torch.fmax(right.var, torch.zeros_like(right.var)))


class ShiftOfRunningMean(OnePass):
    """Takes the variance as E[(x-r)^2] - E[x-r]^2, where r is the running mean."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = Aggregated.statistics(self, x, group, wants_gradient=wants_gradient)
        if self.running_mean is None:
            return right
        shift = self.running_mean.to(right.mean.dtype)
        data = columns(x).to(shift.dtype) - shift[:, None]
        sums = torch.stack([data.sum(1), data.square().sum(1)])
        if group is not None:
            dist.all_reduce(sums, group=group)
        mean, square = sums / max(right.count, 1)
        return replace(right, var=(square - mean.square()).clamp(min=0))

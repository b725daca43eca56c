"""Faults of the running buffers: the factor of an update, its count, empty batches, where it is stored.

`Tracked` is `Aggregated` with the steps of an update as methods, so that a fault replaces one and leaves the
rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from verify.subjects.aggregated import Aggregated, Statistics


class Tracked(Aggregated):
    """A right subject with a method for each step of an update of its buffers."""

    def track(self, statistics: Statistics) -> None:
        self.advance(statistics)
        if statistics.count:
            unbiased = statistics.var * (statistics.count / (statistics.count - 1))
            self.update(statistics.mean, unbiased)
        else:
            self.empty()

    def advance(self, statistics: Statistics) -> None:
        """Count a training batch."""
        del statistics
        self.num_batches_tracked.add_(1)

    def update(self, mean: Tensor, unbiased: Tensor) -> None:
        """Move the running mean and variance towards those of a batch that has values."""
        factor = self.factor()
        for name, new in (("running_mean", mean), ("running_var", unbiased)):
            old = getattr(self, name).to(new.dtype)
            self.store(name, (1 - factor) * old + factor * new)

    def factor(self) -> float:
        """Return the weight of the new batch."""
        if self.momentum is None:
            return self.cumulative(int(self.num_batches_tracked))
        return float(self.momentum)

    def cumulative(self, batches: int) -> float:
        """Return the weight of the last of `batches` in their average."""
        return 1 / batches

    def store(self, name: str, new: Tensor) -> None:
        """Store a buffer."""
        getattr(self, name).copy_(new)

    def empty(self) -> None:
        """Treat a batch without values on any rank."""


# The factor


class MomentumInverted(Tracked):
    """Takes momentum as the weight of the old value."""

    def factor(self) -> float:
        return super().factor() if self.momentum is None else 1 - float(self.momentum)


class MomentumIgnored(Tracked):
    """Always takes 0.1, whatever number momentum is."""

    def factor(self) -> float:
        return super().factor() if self.momentum is None else 0.1


class NoneAsTenth(Tracked):
    """Takes 0.1 where momentum is None."""

    def cumulative(self, batches: int) -> float:
        del batches
        return 0.1


class NoneAsOne(Tracked):
    """Keeps the last batch only where momentum is None."""

    def cumulative(self, batches: int) -> float:
        del batches
        return 1.0


class CumulativeLate(Tracked):
    """Averages as if the initial buffers were a batch: 1 / (n + 1)."""

    def cumulative(self, batches: int) -> float:
        return 1 / (batches + 1)


class CumulativeEarly(Tracked):
    """Reads the count before it is advanced: 1 / (n - 1), and 1 at first."""

    def cumulative(self, batches: int) -> float:
        return 1 / max(batches - 1, 1)


class CumulativeByRank(Tracked):
    """Averages by the number of batches in which this rank had values."""

    filled = 0

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        self.filled += x.numel() > 0
        return super().statistics(x, group, wants_gradient=wants_gradient)

    def cumulative(self, batches: int) -> float:
        del batches
        return 1 / max(self.filled, 1)


class ZeroAsTenth(Tracked):
    """Takes a momentum of 0 for one that is not set."""

    def factor(self) -> float:
        return super().factor() if self.momentum is None else float(self.momentum or 0.1)


class OneAsNone(Tracked):
    """Takes a momentum of 1 for the cumulative average."""

    def factor(self) -> float:
        return self.cumulative(int(self.num_batches_tracked)) if self.momentum == 1 else super().factor()


# The count


class NeverCounted(Tracked):
    """Never advances num_batches_tracked."""

    batches = 0

    def advance(self, statistics: Statistics) -> None:
        del statistics
        self.batches += 1

    def cumulative(self, batches: int) -> float:
        del batches
        return 1 / self.batches


class CountedTwice(Tracked):
    """Advances num_batches_tracked twice a step."""

    def advance(self, statistics: Statistics) -> None:
        super().advance(statistics)
        super().advance(statistics)


class CountedInEvaluation(Tracked):
    """Advances num_batches_tracked in evaluation, too."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return super().forward(input)


class CountedIfCumulative(Tracked):
    """Advances num_batches_tracked only where momentum is None."""

    def advance(self, statistics: Statistics) -> None:
        if self.momentum is None:
            super().advance(statistics)


# Empty batches


class EmptyNotCounted(Tracked):
    """Does not count a batch without values."""

    def advance(self, statistics: Statistics) -> None:
        if statistics.count:
            super().advance(statistics)


class EmptyDecays(Tracked):
    """Moves the buffers towards zero on a batch without values."""

    def empty(self) -> None:
        zeros = torch.zeros_like(self.running_mean, dtype=torch.float32)
        self.update(zeros.to(self.running_mean.dtype), zeros.to(self.running_mean.dtype))


class EmptyResets(Tracked):
    """Sets the buffers to zero on a batch without values, where momentum is None."""

    def empty(self) -> None:
        if self.momentum is None:
            self.running_mean.zero_()
            self.running_var.zero_()


class EmptyIsNan(Tracked):
    """Divides by the count of a batch without values."""

    def empty(self) -> None:
        nan = torch.full_like(self.running_mean, float("nan"))
        self.update(nan, nan)


# Where and when it is stored


class LostToCopy(Tracked):
    """Updates a contiguous copy of a non-contiguous buffer."""

    def store(self, name: str, new: Tensor) -> None:
        getattr(self, name).contiguous().copy_(new)


class ReboundInFloat32(Tracked):
    """Binds the buffers to new tensors in the accumulation dtype instead of storing in place."""

    def store(self, name: str, new: Tensor) -> None:
        setattr(self, name, new.clone())


class LocalMean(Tracked):
    """Tracks this rank's mean instead of the mean of all ranks."""

    own_mean: Tensor | None = None

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        self.own_mean = self._local(x) if x.numel() else None
        return super().statistics(x, group, wants_gradient=wants_gradient)

    def _local(self, x: Tensor) -> Tensor:
        return super().statistics(x, None, wants_gradient=False).mean

    def update(self, mean: Tensor, unbiased: Tensor) -> None:
        super().update(mean if self.own_mean is None else self.own_mean, unbiased)


class FirstStepOnly(Tracked):
    """Updates mean and variance in the first step only."""

    def update(self, mean: Tensor, unbiased: Tensor) -> None:
        if int(self.num_batches_tracked) == 1:
            super().update(mean, unbiased)


class SkipsVariance(Tracked):
    """Updates the running mean, and leaves the running variance."""

    def store(self, name: str, new: Tensor) -> None:
        if name == "running_mean":
            super().store(name, new)


class RunningInTraining(Tracked):
    """From the second step on, normalises the training batch with the running buffers."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        if self.training and self.track_running_stats and int(self.num_batches_tracked) > 1:
            dtype = statistics.mean.dtype
            mean, var = self.running_mean.to(dtype, copy=True), self.running_var.to(dtype, copy=True)
            statistics = Statistics(statistics.count, mean, var, statistics.wants_gradient)
        return super().normalise(x, statistics, group)

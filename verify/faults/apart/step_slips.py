"""Slips around the step of the aggregated batch norm: buffers, memory, collectives and refusals."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.subjects.aggregated import Aggregated, Statistics


class BuffersOfTheFirst(Aggregated):
    """Updates the running statistics on the first rank of the group only."""

    def track(self, statistics: Statistics) -> None:
        group = self._group()
        if group is None or dist.get_rank(group) == 0:
            super().track(statistics)
        else:
            self.num_batches_tracked.add_(1)


class Workspace(Aggregated):
    """Returns outputs of one shape in the same memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[Any, Tensor] = {}

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        kept = self.kept.setdefault((y.shape, y.dtype, y.stride()), torch.empty_like(y).detach())
        kept.copy_(y.detach())
        y.data = kept
        return y


class BuffersOfNothing(Aggregated):
    """Updates its buffers with the moments of a batch without values, which are NaN."""

    def track(self, statistics: Statistics) -> None:
        if statistics.count:
            super().track(statistics)
            return
        self.num_batches_tracked.add_(1)
        for buffer in (self.running_mean, self.running_var):
            buffer.mul_(float("nan"))


class LeavesWhenEmpty(Aggregated):
    """Returns from the forward at once where the rank's batch is empty, while the others gather."""

    def _train(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            if self.track_running_stats:
                self.num_batches_tracked.add_(1)
            return x * 1
        return super()._train(x)


class RefusesByOwnCount(Aggregated):
    """Refuses a batch of which this rank has one value per channel."""

    def _train(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[1]:
            raise ValueError("Expected more than one value per channel when training.")
        return super()._train(x)

"""Slips in the forward of the aggregated batch norm: one method of it written anew, not quite right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from verify.subjects.aggregated import Aggregated, Moments, Statistics, gather_moments
from verify.subjects.channels import columns


class CentresByOwnMean(Aggregated):
    """Centres the input by the rank's own mean, and scales it by the deviation of all."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        with torch.no_grad():
            data = columns(x)
            own = data.sum(1) / max(data.shape[1], 1)
        return super().normalise(x, replace(statistics, mean=own), group)


class OnePass(Aggregated):
    """Takes M2 of a rank as the sum of squares less n times the squared mean."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        data = columns(x)
        n = data.shape[1]
        mean = data.sum(1) / max(n, 1)
        m2 = (data.square().sum(1) - n * mean.square()).clamp(min=0)
        own = Moments(n, mean, m2, wants_gradient)
        return self.merge([own] if group is None else gather_moments(own, group))


class MeanInHalf(Aggregated):
    """Rounds the mean of the whole batch to the input's dtype before it centres."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        rounded = statistics.mean.to(x.dtype).to(statistics.mean.dtype)
        return super().normalise(x, replace(statistics, mean=rounded), group)

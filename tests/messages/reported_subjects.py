"""Ten subjects whose reports are read: what they do is what their report must let a reader find out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from verify.faults.apart.block_welford import FloorOfBlocks, TailNotWritten
from verify.faults.apart.double_inside import CutOutput
from verify.faults.apart.sample_tables import BesselOfSamples, BiasByMeanOfSamples, StackOfSamples
from verify.faults.contracts import BiasedWeighted
from verify.faults.conversion import NestedWithoutGroup
from verify.faults.repetition import CachedByShape, FirstStepSynchronized
from verify.subjects.aggregated import Aggregated, Statistics, gather_moments, local_moments


class TwoAtOnce(BesselOfSamples, BiasByMeanOfSamples):
    """Two faults that have nothing to do with each other."""


class SquaresInHalf(Aggregated):
    """Squares float16 values in float16, where the squares of values above 255 are infinite."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        """Return the statistics of all ranks."""
        own = replace(local_moments(x), wants_gradient=wants_gradient)
        if x.dtype == torch.float16 and own.count:
            rows = x.detach().movedim(1, 0).reshape(x.shape[1], -1)
            squares = (rows.to(own.mean.dtype) - own.mean[:, None]).half().square()
            own = replace(own, m2=squares.to(own.mean.dtype).sum(1))
        return self.merge([own] if group is None else gather_moments(own, group))


class Biased(BiasedWeighted):
    """Tracks the biased variance, and does not say so."""

    syncbn_verify: ClassVar = {}


REPORTED = {
    "statistics": FloorOfBlocks,
    "two faults": TwoAtOnce,
    "process cache": CachedByShape,
    "first step only": FirstStepSynchronized,
    "overflow": SquaresInHalf,
    "an exception": StackOfSamples,
    "truncation": CutOutput,
    "a tail": TailNotWritten,
    "a convention": Biased,
    "a conversion": NestedWithoutGroup,
}

"""Step data: what one step of one group computes with, as numpy arrays, and sums over it by rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference.padding import Layout
from reference.signature import StepInput, StepScalars

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StepData:
    """The data of one step, padded as the reference's program wants it.

    Attributes:
        x, g: Input and cotangent, (shards, length, C).
        times: How many positions of the batch each stands for, 0 for padding, (shards, length, 1).
        owner: The rank of each shard, (shards,); `ranks` for one that is not used.
        ranks: Rows of a table by rank; those beyond the group's hold nothing.
        weight, bias: (C,).
        scalars: The arithmetic and the options.
    """

    x: Floats
    g: Floats
    times: Floats
    owner: NDArray[np.int32]
    ranks: int
    weight: Floats
    bias: Floats
    scalars: StepScalars

    @classmethod
    def of(cls, given: StepInput, where: Layout) -> StepData:
        """Return the data of a step's program."""
        return cls(
            x=np.asarray(given.x),
            g=np.asarray(given.g),
            times=np.asarray(given.mask, np.float64)[..., None],
            owner=np.asarray(given.owner),
            ranks=where.bucket.ranks,
            weight=np.asarray(given.parameters)[0],
            bias=np.asarray(given.parameters)[1],
            scalars=StepScalars(*given.scalars),
        )

    @property
    def counts(self) -> Floats:
        """Values a channel on each rank, (ranks, 1)."""
        return self.by_rank(np.ones((*self.times.shape[:2], 1)))

    def by_rank(self, values: Floats) -> Floats:
        """Return the sum of `values` (shards, length, C) over the positions of each rank, (ranks, C)."""
        shards = (self.times * values).sum(axis=1)
        table = np.zeros((self.ranks + 1, values.shape[-1]))
        np.add.at(table, self.owner, shards)
        return table[:-1]

    def greatest(self, values: Floats) -> Floats:
        """Return the greatest of `values`, not negative, at the positions of each rank, (ranks, C)."""
        shards = np.where(self.times > 0, values, 0.0).max(axis=1)
        table = np.zeros((self.ranks + 1, values.shape[-1]))
        np.maximum.at(table, self.owner, shards)
        return table[:-1]

    def at(self, by_rank: Floats) -> Floats:
        """Return a table (ranks, C) at the positions, (shards, 1, C)."""
        return by_rank[np.minimum(self.owner, self.ranks - 1)][:, None]

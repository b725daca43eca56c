"""Subjects in a file of one's own that end badly: each is reported as what it is."""

from __future__ import annotations

import os
import time

import torch

from verify.subjects.aggregated import Aggregated


class HangsOnEmpty(Aggregated):
    """Waits for ever where its rank has no values."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.numel() == 0:
            time.sleep(3600)
        return super().forward(input)


class _Abort(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        os.abort()


class AbortsInBackward(Aggregated):
    """Ends its process from C in the backward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _Abort.apply(super().forward(input))


class RaisesOnOneRank(Aggregated):
    """Raises on rank 1, before its peers' collective."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.distributed.get_rank() == 1:
            raise RuntimeError("rank one has had enough")
        return super().forward(input)

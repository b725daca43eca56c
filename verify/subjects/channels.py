"""The channel axis: a batch (N, C, ...) as columns of its channels, and per-channel values across a batch.

Sums run over a contiguous (C, n) copy: `torch.sum` is pairwise along one contiguous axis, but accumulates one
by one over what it cannot coalesce (65536 x C x 2 summed over the first and the last axis: 43 u instead of 1
u).
"""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for the half dtypes, else `dtype`."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def columns(x: Tensor) -> Tensor:
    """Return `x` (N, C, ...) as a contiguous (C, n) tensor in its accumulation dtype."""
    count = x.numel() // max(x.shape[1], 1)
    return x.to(accumulation_dtype(x.dtype)).movedim(1, 0).reshape(x.shape[1], count).contiguous()


def uncolumns(data: Tensor, like: Tensor) -> Tensor:
    """Return `data` (C, n) in the shape and dtype of `like` (N, C, ...): the inverse of `columns`."""
    n, channels, *spatial = like.shape
    return data.to(like.dtype).view(channels, n, *spatial).movedim(0, 1)


def across(values: Tensor, x: Tensor) -> Tensor:
    """Return per-channel `values` (C,) in a shape that broadcasts against `x` (N, C, ...)."""
    return values.view(1, -1, *(1 for _ in x.shape[2:]))


def native_layout(y: Tensor, like: Tensor) -> Tensor:
    """Return `y` in the layout of torch's batch norm: channels_last if `like` is, else contiguous."""
    if like.is_contiguous():
        return y.contiguous()
    for memory_format, dims in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if like.dim() == dims and like.is_contiguous(memory_format=memory_format):
            return y.contiguous(memory_format=memory_format)
    return y.contiguous()

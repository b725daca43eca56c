"""Block sums: how a block of CUDA threads adds up a channel in torch's backward, with its roundings.

After `reduce` and `SumReduceOp` (aten/src/ATen/native/cuda/Normalization.cuh), `BlockReduce`
(block_reduce.cuh) and the launch in `batch_norm_backward_reduce_cuda_template`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK, WARP = 512, 32


def added_by_a_block(terms: Tensor, like: Tensor) -> Tensor:
    """Return the sum of `terms` (C, n) over n, for an input `like` (N, C, ...) of a half dtype.

    Threads add up their own terms in the dtype of `terms`; what they pass to each other is rounded to that of
    `like`.
    """
    channels, samples = terms.shape[0], like.shape[0]
    positions = terms.shape[1] // max(samples, 1)
    rows = min(1 << max(samples.bit_length() - 1, 0), BLOCK // WARP)
    columns = min(next((size for size in (32, 64, 128, 256) if positions <= size), BLOCK), BLOCK // rows)
    shaped = terms.view(channels, samples, positions)
    shaped = pad(shaped, (0, -positions % columns, 0, -samples % rows))
    own = shaped.view(channels, -1, rows, shaped.shape[2] // columns, columns).sum((1, 3))
    warps = _added_by_a_warp(own.reshape(channels, -1, WARP), like.dtype)
    return _added_by_a_warp(pad(warps, (0, WARP - warps.shape[1])), like.dtype)


def _added_by_a_warp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum over the last axis, of a warp's threads, as the first of them has it in the end."""
    offset = WARP // 2
    while offset:
        values = values[..., :offset] + values[..., offset : 2 * offset].to(dtype).to(values.dtype)
        offset //= 2
    return values[..., 0]

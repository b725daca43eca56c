"""CUDA kernels: which of torch's batch norm kernels takes a rank's tensors, and how its threads share them.

After aten/src/ATen/native/cuda/Normalization.cu and .cuh, `_select_batch_norm_backend` in
aten/src/ATen/native/Normalization.cpp, and the module's own Python, which makes input and cotangent of a
synchronised step contiguous unless they are channels_last. What a layout does not tell for sure counts as the
kernel that rounds more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from properties.case import Case
from properties.mechanisms.native_kernels import STRIDED
from reference.rounding import depth

_BLOCK, _WARP = 512, 32


def halves_partial_sums(case: Case, rank: int, *, synchronised: bool, training: bool) -> bool:
    """Return whether a rank's backward passes partial sums between threads in a half input's dtype.

    `Float2` takes the input's type in its constructor, by which a block's shuffles return what they shift.
    The kernels for channels_last have their own reduction, and so has cuDNN.
    """
    if case.dtype not in ("float16", "bfloat16") or case.count_of(rank) == 0:
        return False
    if training and not synchronised and goes_to_cudnn(case, rank, training=True):
        return False  # of an evaluation it has no backward
    layouts = (case.input_layout, case.cotangent_layout)
    return not all(_by_channels(case, rank, layout, copied=synchronised) for layout in layouts)


def halves_mean(case: Case, rank: int) -> bool:
    """Return whether a rank's own mean is that of `var_mean`, which rounds it in float16 alone."""
    spatial = len(case.spatial_of(rank))
    strided = case.input_layout in STRIDED or (case.input_layout == "channels_last" and spatial == 3)
    return case.dtype == "float16" and strided and not goes_to_cudnn(case, rank, training=True)


def levels(case: Case, rank: int) -> int:
    """Return how often a value of a rank is passed on between threads, rounded each time, at most."""
    samples, positions = case.batches[rank], math.prod(case.spatial_of(rank))
    within = min(math.ceil(math.log2(max(positions, 1))), 5)
    warps = min(samples * math.ceil(positions / _WARP), _BLOCK // _WARP)
    return within + math.ceil(math.log2(max(warps, 1)))


def extra_depth(case: Case, rank: int) -> float:
    """Return by how much a rank's sums are deeper than grade A admits, by which all threads are busy.

    Threads in a row take the positions of a sample, and rows of threads the samples: with few positions most
    threads have nothing, and the others add up more than n/512. The kernels for channels_last spread over
    blocks.
    """
    samples, positions = case.batches[rank], math.prod(case.spatial_of(rank))
    n = samples * positions
    if n == 0 or _by_channels(case, rank, case.input_layout, copied=True):
        return 0.0
    columns = next((size for size in (32, 64, 128, 256) if positions <= size), _BLOCK)
    rows = min(1 << (samples.bit_length() - 1), _BLOCK // _WARP)  # of the synchronised backward's launch
    terms = max(
        math.ceil(samples / down) * math.ceil(positions / across)
        for down, across in ((_BLOCK // columns, columns), (rows, min(columns, _BLOCK // rows)))
    )
    admitted = depth(n, 1, "A")
    return max(0.0, min(float(n), admitted - n / _BLOCK + terms) - admitted)


def loses_strided_update(case: Case, rank: int) -> bool:
    """Return whether cuDNN updates contiguous copies of a rank's strided buffers, and not the buffers."""
    return case.strided_buffers and case.tracking and goes_to_cudnn(case, rank, training=True)


def reads_buffers_late(case: Case, rank: int) -> bool:
    """Return whether the backward of a rank's evaluation reads the buffers, and not what the forward saved.

    The kernel that goes by planes does, and so does what stands in for a backward that cuDNN does not have.
    """
    by_planes = not _by_channels(case, rank, case.input_layout, copied=False)
    return by_planes or goes_to_cudnn(case, rank, training=False)


def goes_to_cudnn(case: Case, rank: int, *, training: bool) -> bool:
    """Return whether torch gives an unsynchronised step to cuDNN."""
    samples = case.batches[rank]
    return (
        case.dtype != "bfloat16"
        and (case.dtype != "float16" or case.param_dtype == "float32")
        and case.affine == "both"
        and (case.tracking or training)
        and len(case.spatial_of(rank)) >= 1
        and 0 < samples <= (880801 if training else 65535)
    )


def _by_channels(case: Case, rank: int, layout: str, *, copied: bool) -> bool:
    """Return whether a tensor surely goes to the kernels for channels_last.

    Args:
        case: The case.
        rank: Whose tensor.
        layout: Of the tensor.
        copied: It was made contiguous, unless it is channels_last.
    """
    positions: Sequence[int] = case.spatial_of(rank)
    if layout == "channels_last":
        return len(positions) == 2 or math.prod(positions) == 1  # with five dimensions it goes by strides
    if not (copied or layout == "contiguous"):
        return False
    if case.channels > 1:
        return math.prod(positions) == 1
    # One channel: it is contiguous in both formats. One position a sample, too: it may be contiguous by its
    # sizes alone; nothing is copied then, and the stride of channels, which is asked for, may be any.
    return len(positions) == 2 or (math.prod(positions) == 1 and layout == "contiguous")

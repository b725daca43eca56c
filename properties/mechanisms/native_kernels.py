"""Native kernels: which of torch's batch norm kernels on the CPU takes a rank's tensors, as a case tells.

After `batch_norm_backward_cpu_template` (aten/src/ATen/native/Normalization.cpp): tensors that are both dense
in the same memory format go to a kernel of that format, where a single position counts as channels_last; all
others to one that goes by strides.
"""

from __future__ import annotations

import math

from properties.case import Case
from properties.values.misread_layouts import as_whole
from reference.rounding import depth

STRIDED = ("permuted", "sliced", "cropped", "split")
"""Layouts of inputs that may have gaps, or another order, so that the kernel goes by strides."""
_LANES = {"float64": 4, "float32": 8, "bfloat16": 8, "float16": 8}
"""Of the narrowest vector (32 bytes) in which sums over a plane are kept, in the accumulation dtype."""


def may_go_by_channels(case: Case, rank: int) -> bool:
    """Return whether the backward may take the channels-last kernel, which reads buffers by bare pointers."""
    inputs, cotangents = (as_whole(case, rank, each) for each in (case.input_layout, case.cotangent_layout))
    if "sliced" in (inputs, cotangents) or case.count_of(rank) == 0:
        return False
    if math.prod(case.spatial_of(rank)) == 1:
        return _dense(case, rank, inputs) and _dense(case, rank, cotangents)
    if "contiguous" in (inputs, cotangents) and "permuted" not in (inputs, cotangents):
        return False
    if case.batches[rank] == 1 and cotangents != "expanded":
        return True  # one sample does not tell permuted and channels_last apart
    return inputs == cotangents == "channels_last"


def is_ambiguous(case: Case, rank: int) -> bool:
    """Return whether a permuted input or cotangent is a line, and the other of them is contiguous.

    A single sample (1, C, 3, 1) with reversed strides (1, 1, C, 3 C) is contiguous in channels_last as well.
    """
    lines = sum(size > 1 for size in case.spatial_of(rank))
    layouts = {as_whole(case, rank, each) for each in (case.input_layout, case.cotangent_layout)}
    return (
        layouts == {"contiguous", "permuted"}
        and case.batches[rank] == 1
        and case.channels > 1
        and len(case.spatial_of(rank)) >= 2
        and lines == 1
    )


def adds_one_by_one(case: Case, rank: int) -> bool:
    """Return whether torch's native kernels add this rank's values up one by one in the accumulation dtype.

    They add float32 up in float64, but for the channels-last kernel, also taken by batches of one position,
    and the mean of a strided input, which is `at::mean` in float32. Half dtypes are added up in float32, and
    float64 in itself. Of the backward see `extra_backward_depth`.
    """
    strided = case.input_layout in STRIDED
    by_channels = case.input_layout == "channels_last" or math.prod(case.spatial_of(rank)) == 1
    return case.dtype != "float32" or strided or by_channels


def extra_backward_depth(case: Case, rank: int) -> float:
    """Return by how much the backward's sums over a rank are deeper than grade A admits.

    The backward of contiguous tensors adds a plane up in the lanes of a vector (`vec::reduce_all`), an eighth
    of the plane one by one, and the planes in float64 if the input is float32; all other kernels may add up
    the whole batch one by one, that by strides at least from sample to sample (`at::sum`).
    """
    samples, positions = case.batches[rank], math.prod(case.spatial_of(rank))
    n = samples * positions
    if n == 0:
        return 0.0
    terms = float(n)
    if case.input_layout == case.cotangent_layout == "contiguous" and positions > 1:
        terms = math.ceil(positions / _LANES[case.dtype]) + math.log2(_LANES[case.dtype])
        terms += 0 if case.dtype == "float32" else samples
    admitted = depth(n, 1, "A")
    return max(0.0, min(float(n), terms) - admitted)


def _dense(case: Case, rank: int, layout: str) -> bool:
    """Whether a tensor with one position a sample lies without gaps in the order of samples and channels."""
    if layout == "permuted":
        return case.batches[rank] == 1 or case.channels == 1
    return layout != "expanded" or case.batches[rank] == 1

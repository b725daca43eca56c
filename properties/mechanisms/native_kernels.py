"""Native kernels: which of torch's batch norm kernels on the CPU takes a rank's tensors, as a case tells.

After `batch_norm_backward_cpu_template` (aten/src/ATen/native/Normalization.cpp): tensors that are both dense
in the same memory format go to a kernel of that format, where a single position counts as channels_last; all
others to one that goes by strides.
"""

from __future__ import annotations

import math

from properties.case import Case


def may_go_by_channels(case: Case, rank: int) -> bool:
    """Return whether the backward may take the channels-last kernel, which reads buffers by bare pointers."""
    inputs, cotangents = case.input_layout, case.cotangent_layout
    if inputs == "sliced" or case.count_of(rank) == 0:
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
    return (
        {case.input_layout, case.cotangent_layout} == {"contiguous", "permuted"}
        and case.batches[rank] == 1
        and case.channels > 1
        and len(case.spatial_of(rank)) >= 2
        and lines == 1
    )


def adds_one_by_one(case: Case, rank: int) -> bool:
    """Return whether torch's native kernels add this rank's values up one by one in the accumulation dtype.

    They add float32 up in float64, but for the channels-last kernel, also taken by batches of one position,
    and the mean of a strided input, which is `at::mean` in float32. Half dtypes are added up in float32, and
    float64 in itself. The backward of contiguous tensors adds each plane up in the lanes of a vector, in
    float32 (`vec::reduce_all`): an eighth of the plane one by one, which grade A admits for ordinary
    cotangents, and not for one that repeats a value (`tests/power/test_written_subjects.py`).
    """
    strided = case.input_layout in ("permuted", "sliced")
    by_channels = case.input_layout == "channels_last" or math.prod(case.spatial_of(rank)) == 1
    return case.dtype != "float32" or strided or by_channels


def _dense(case: Case, rank: int, layout: str) -> bool:
    """Whether a tensor with one position a sample lies without gaps in the order of samples and channels."""
    if layout == "permuted":
        return case.batches[rank] == 1 or case.channels == 1
    return layout != "expanded" or case.batches[rank] == 1

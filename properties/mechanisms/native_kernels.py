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


def _dense(case: Case, rank: int, layout: str) -> bool:
    """Whether a tensor with one position a sample lies without gaps in the order of samples and channels."""
    if layout == "permuted":
        return case.batches[rank] == 1 or case.channels == 1
    return layout != "expanded" or case.batches[rank] == 1

"""The known causes: each a name, the clause that explains it, and the variant of the reference it predicts.

A cause belongs to one part of a synchronized batch norm: the forward, the buffers, their count, the input's
gradient, or the parameters' gradients. Within a part the most specific comes first. Numbers are those of the
26 fault classes in the documentation of the fault catalogue (`verify/faults`).
"""

from __future__ import annotations

from properties.diagnosis.causes.buffer_causes import BUFFERS, COUNT
from properties.diagnosis.causes.cause import PROPERTIES_OF, Cause, Part
from properties.diagnosis.causes.forward_causes import FORWARD
from properties.diagnosis.causes.gradient_causes import AFFINE, BACKWARD, CONSISTENT, SWAPPED

__all__ = [
    "AFFINE",
    "ALL",
    "BACKWARD",
    "BUFFERS",
    "BY_ID",
    "CONSISTENT",
    "COUNT",
    "FORWARD",
    "PROPERTIES_OF",
    "SWAPPED",
    "Cause",
    "Part",
]

ALL: tuple[Cause, ...] = (*FORWARD, *BUFFERS, *COUNT, *BACKWARD, *AFFINE)
BY_ID: dict[str, Cause] = {cause.id: cause for cause in ALL}

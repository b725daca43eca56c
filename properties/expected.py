"""Expected: what the reference says of one case, element by element, and how far rounding may carry it.

Numpy and plain data only; `properties.expectation` computes it, the judge compares with it.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """Expected values of one tensor and the bound of |observed - expected|, in the tensor's logical shape.

    Attributes:
        value: float64; NaN where the contract asks for a non-finite number of any class.
        bound: float64, not negative; infinite where the element cannot be decided.
        overflows: Expected magnitude plus bound rounds to infinity in the stored dtype: a stored infinity
            (of the value's sign) is right too.
        optional: The tensor may be absent (a gradient that is None).
        dtype: torch's name of the dtype it must be stored in.
    """

    value: Floats
    bound: Floats
    overflows: NDArray[np.bool_]
    optional: bool = False
    dtype: str = "float32"


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What is expected of one case.

    Attributes:
        tensors: By name (`output.0`, `grad_weight.1`, `running_var.end`; see `properties.observation`), then
            by rank. A name or rank that is missing must be absent in the observation, too, unless the rank
            must refuse.
        tracked: Exact `num_batches_tracked.*` by name, then by rank.
        refusals: Ranks that must refuse the case, with the exception's type name; "" for any type.
        digests: Of the inputs each rank draws.
        grade: The grade that the bounds are for.
    """

    tensors: dict[str, dict[int, Interval]] = {}
    tracked: dict[str, dict[int, int]] = {}
    refusals: dict[int, str] = {}
    digests: dict[int, str] = {}
    grade: str = "A"

"""Expected: what the reference says of one case, element by element, and how far rounding may carry it.

Numpy and plain data only; `properties.expectation` computes it, the judge compares with it.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from properties.observation import Tensor, as_float64

Floats = NDArray[np.float64]


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """Expected values of one tensor and the bound of |observed - expected|, in the tensor's logical shape.

    Attributes:
        value: float64; NaN where the contract asks for a non-finite number of any class.
        bound: float64, not negative; infinite where the element cannot be decided.
        overflows: Expected magnitude plus bound rounds to infinity in the stored dtype: a stored infinity
            (of the value's sign) is right too.
        positions: Of a large tensor, which are expected: value, bound and overflows are (positions, C), and
            a position is its sample times the spatial size plus its spatial position. None for all.
        whole: The tensor's logical shape where `positions` are given.
        optional: The tensor may be absent (a gradient that is None).
        dtype: torch's name of the dtype it must be stored in.
    """

    value: Floats
    bound: Floats
    overflows: NDArray[np.bool_]
    optional: bool = False
    dtype: str = "float32"
    positions: NDArray[np.int64] | None = None
    whole: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's logical shape."""
        return self.value.shape if self.positions is None else self.whole

    @property
    def unjudged(self) -> int:
        """Elements of the tensor beside those in the sample."""
        return math.prod(self.shape) - self.value.size

    def of(self, tensor: Tensor) -> Floats:
        """Return the values, in float64 and in the shape of `value`, of a tensor of this shape."""
        if self.positions is None:
            return tensor.values
        n, c, *spatial = self.whole
        sample, position = np.divmod(self.positions, math.prod(spatial))
        return as_float64(tensor.array.reshape(n, c, math.prod(spatial))[sample, :, position], tensor.dtype)

    def index(self, place: tuple[int, ...]) -> tuple[int, ...]:
        """Return where in the tensor an element of `value` is."""
        if self.positions is None:
            return place
        row, channel = place
        spatial = self.whole[2:]
        sample, position = divmod(int(self.positions[row]), math.prod(spatial))
        return (sample, channel, *(int(i) for i in np.unravel_index(position, spatial) if spatial))


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

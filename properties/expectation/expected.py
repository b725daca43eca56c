"""Expected: what the reference says of one case, element by element, and how far rounding may carry it.

Numpy and plain data only; `properties.expectation.expect` computes it, the judge compares with it.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from properties.observation import Tensor, as_float64
from properties.values.period import extremes, repeated, times

Floats = NDArray[np.float64]


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """Expected values of one tensor and the bound of |observed - expected|, in the tensor's logical shape.

    Attributes:
        value: float64; NaN where the contract asks for a non-finite number of any class.
        bound: float64, not negative; infinite where the element cannot be decided.
        overflows: Expected magnitude plus bound rounds to infinity in the stored dtype: a stored infinity
            (of the value's sign) is right too.
        repeats: Value, bound and overflows are those of one period of a block that repeats
            (`properties.values.period`), (period, C): what a position expects is that of its number modulo
            the period.
        logical_shape: The tensor's logical shape where that of `value` is another.
        unjudged: Elements of the tensor beside those of a sample (`at`).
        optional: The tensor may be absent (a gradient that is None).
        dtype: torch's name of the dtype it must be stored in.
    """

    value: Floats
    bound: Floats
    overflows: NDArray[np.bool_]
    optional: bool = False
    dtype: str = "float32"
    repeats: bool = False
    logical_shape: tuple[int, ...] = ()
    unjudged: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's logical shape."""
        return self.logical_shape or self.value.shape

    @property
    def multiplicity(self) -> NDArray[np.int64]:
        """How many elements of the tensor each element of `value` stands for, in a shape that broadcasts."""
        if not self.repeats:
            return np.ones((1,) * self.value.ndim, np.int64)
        n, _, *spatial = self.logical_shape
        return times(n * math.prod(spatial), len(self.value)).astype(np.int64)[:, None]

    def complete(self) -> Interval:
        """Return the interval with every element of the tensor; itself if it does not repeat."""
        if not self.repeats:
            return self
        n, c, *spatial = self.logical_shape
        value, bound, overflows = (
            repeated(array.T[None], (n, c, math.prod(spatial))).reshape(self.logical_shape)
            for array in (self.value, self.bound, self.overflows)
        )
        return msgspec.structs.replace(
            self, value=value, bound=bound, overflows=overflows, repeats=False, logical_shape=()
        )

    def extremes(self, tensor: Tensor) -> tuple[Floats, Floats]:
        """Return the least and the greatest value, in float64, of what each element of `value` stands for.

        Both are its values if the interval does not repeat.
        """
        if not self.repeats:
            return tensor.values, tensor.values
        n, c, *spatial = self.logical_shape
        kept = tensor.dtype if tensor.dtype in ("float32", "float64") else ""
        array = tensor.array if kept else tensor.values
        low, high = extremes(array.reshape(n, c, math.prod(spatial)), len(self.value))
        return as_float64(low, kept or "float64"), as_float64(high, kept or "float64")

    def at(self, positions: NDArray[np.int64] | None) -> Interval:
        """Return the interval at a sample of the tensor's positions; None for all."""
        if positions is None:
            return self
        n, c, *spatial = self.shape

        def rows(array: NDArray[Any]) -> NDArray[Any]:
            if self.repeats:
                return array[positions % len(array)]
            sample, position = np.divmod(positions, math.prod(spatial))
            return array.reshape(n, c, math.prod(spatial))[sample, :, position]

        value, bound, overflows = rows(self.value), rows(self.bound), rows(self.overflows)
        return msgspec.structs.replace(
            self,
            value=value,
            bound=bound,
            overflows=overflows,
            repeats=False,
            logical_shape=self.shape,
            unjudged=math.prod(self.shape) - value.size,
        )


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

"""Expected: what the reference says of one case, element by element, and how far rounding may carry it.

Numpy and plain data only; `properties.expectation.expect` computes it, the judge compares with it.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from properties.observation import Tensor
from properties.values.period import repeated, times

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
        weights: How many elements of the tensor each element of `value` stands for, in a shape that
            broadcasts; None for one.
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
    weights: NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's logical shape."""
        return self.logical_shape or self.value.shape

    @property
    def multiplicity(self) -> NDArray[np.int64]:
        """How many elements of the tensor each element of `value` stands for, in a shape that broadcasts."""
        return np.ones((1,) * self.value.ndim, np.int64) if self.weights is None else self.weights

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

    def at(self, tensor: Tensor) -> Interval:
        """Return what is expected of the elements of a folded tensor, (rows, C); itself for a whole one.

        The rows of the least elements stand for all of their places, the others for none beside.
        """
        positions = tensor.positions
        if positions is None:
            return self
        n, c, *spatial = self.shape
        size, channels = math.prod(spatial), np.arange(c)

        def rows(array: NDArray[Any]) -> NDArray[Any]:
            if self.repeats:
                return array[positions % len(array), channels]
            sample, position = np.divmod(positions, size)
            return array.reshape(n, c, size)[sample, channels, position]

        weights = np.zeros((len(positions), 1), np.int64)
        weights[: tensor.held, 0] = times(n * size, tensor.held)
        value, bound, overflows = rows(self.value), rows(self.bound), rows(self.overflows)
        return msgspec.structs.replace(
            self,
            value=value,
            bound=bound,
            overflows=overflows,
            repeats=False,
            logical_shape=self.shape,
            weights=weights,
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

"""Bits: whether two stored tensors are the same bit for bit, NaN by class.

Any NaN equals any other (IEEE 754-2019, 6.2.3: a NaN's payload is only recommended to survive); zeros of
different sign differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from properties.observation import Tensor

_UNSIGNED: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}


def nans(tensor: Tensor) -> NDArray[np.bool_]:
    """Return where `tensor` is NaN, in the shape of its array."""
    array = tensor.array
    if tensor.dtype == "bfloat16":
        return np.asarray((array & np.uint16(0x7FFF)) > np.uint16(0x7F80))
    if array.dtype.kind in "fc":
        return np.asarray(np.isnan(array))
    return np.zeros(array.shape, np.bool_)


def comparable(one: Tensor, other: Tensor) -> bool:
    """Return whether the tensors have one dtype and one shape, so that their elements correspond."""
    return (one.dtype, one.array.dtype, one.shape, one.array.shape) == (
        other.dtype,
        other.array.dtype,
        other.shape,
        other.array.shape,
    )


def differences(one: Tensor, other: Tensor) -> NDArray[np.bool_]:
    """Return where two comparable tensors differ, in the shape of their arrays."""
    a, b = one.array, other.array
    if a.tobytes() == b.tobytes():
        return np.zeros(a.shape, np.bool_)
    if a.dtype.itemsize in _UNSIGNED:
        unsigned = _UNSIGNED[a.dtype.itemsize]
        different = np.ascontiguousarray(a).view(unsigned) != np.ascontiguousarray(b).view(unsigned)
        different = different.reshape(a.shape)
    else:
        different = a != b
    return np.asarray(different & ~(nans(one) & nans(other)))


def hexadecimal(tensor: Tensor, place: tuple[int, ...]) -> str:
    """Return the bits of the element at `place` of its array (`0x3018`), or nothing if they are not plain."""
    element: Any = tensor.array[place]
    size = tensor.array.dtype.itemsize
    if size not in _UNSIGNED:
        return ""
    return f"0x{int(np.asarray(element).reshape(1).view(_UNSIGNED[size])[0]):0{2 * size}x}"


def number(value: float) -> float | str:
    """Return `value`, or its name (`nan`, `inf`, `-inf`) if it is not finite: JSON has no such numbers."""
    return float(value) if np.isfinite(value) else str(float(value))

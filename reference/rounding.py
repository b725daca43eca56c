"""Rounding: the facts of floating-point dtypes and devices that a bound is made of.

The model of an operation in the accumulation dtype is the standard one with underflow (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 2.2 and problem 2.19):

    fl(a op b) = (a op b) (1 + delta) + eta,   |delta| <= k u,   |eta| <= smallest normal

where k is 1 for add, subtract and multiply, and comes from a table per device for the rest; eta covers
gradual underflow as well as a flush of subnormal results to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import jax

Grade = Literal["A", "B", "C"]


@dataclass(frozen=True, slots=True)
class DtypeFacts:
    """A binary floating-point dtype.

    Attributes:
        u: Unit roundoff, 2^-p for a precision of p bits.
        smallest_normal: Smallest positive normal number.
        underflow: Greatest error of storing a number in the subnormal range: half the smallest subnormal for
            float16, whose subnormals no device flushes on conversion; one smallest normal for the rest.
        largest: Largest finite number.
    """

    u: float
    smallest_normal: float
    underflow: float
    largest: float

    @property
    def overflow(self) -> float:
        """Magnitude from which rounding to nearest gives infinity: the largest number plus half an ulp."""
        return self.largest + math.ldexp(self.u, math.frexp(self.largest)[1]) / 2


FACTS: dict[str, DtypeFacts] = {
    "float64": DtypeFacts(2.0**-53, 2.0**-1022, 2.0**-1022, (2.0 - 2.0**-52) * 2.0**1023),
    "float32": DtypeFacts(2.0**-24, 2.0**-126, 2.0**-126, (2.0 - 2.0**-23) * 2.0**127),
    "float16": DtypeFacts(2.0**-11, 2.0**-14, 2.0**-25, 65504.0),
    "bfloat16": DtypeFacts(2.0**-8, 2.0**-126, 2.0**-126, (2.0 - 2.0**-7) * 2.0**127),
}


@dataclass(frozen=True, slots=True)
class DeviceFactors:
    """Relative error of an operation in units of u, where it may exceed one rounding.

    Sources:
        cpu: IEEE 754 requires division and square root to be correctly rounded; a reciprocal square root is
            one of each.
        cuda: CUDA C++ Programming Guide, table of single-precision functions: division and square root are
            correctly rounded by default and within 2 ulp with fast math, rsqrtf within 2 ulp. One ulp is
            at most 2 u. Double precision: division and square root correctly rounded, rsqrt within 1 ulp.
    """

    div: float
    sqrt: float
    rsqrt: float


DEVICES: dict[str, DeviceFactors] = {
    "cpu": DeviceFactors(div=1.0, sqrt=1.0, rsqrt=2.0),
    "cuda": DeviceFactors(div=4.0, sqrt=4.0, rsqrt=4.0),
}

REFERENCE_U = FACTS["float64"].u


class Arithmetic(NamedTuple):
    """The arithmetic in which a subject computes, as run-time scalars (or arrays) of a compiled bound.

    Attributes:
        u: Unit roundoff, the reference's own added.
        eta: Smallest normal number.
        largest: Largest finite number.
        depth_u: Depth of a reduction times u, the reference's own added; broadcast against the reduced array.
        div, sqrt, rsqrt: Factors of the device.
    """

    u: jax.Array | float
    eta: jax.Array | float
    largest: jax.Array | float
    depth_u: jax.Array | float
    div: jax.Array | float
    sqrt: jax.Array | float
    rsqrt: jax.Array | float


def depth(n: int, ranks: int, grade: Grade) -> float:
    """Return the depth of a sum of `n` elements over `ranks` contributing ranks: roundings an element meets.

    Grade A admits blocked and pairwise sums: min(n, n/512 + 8 log2(n + 1) + 8 + ranks), for a block of 512
    threads that loop n/512 times; grades B and C admit any order: n. The depth is charged once, on the sum of
    the elements' magnitudes, and covers the reduction within a rank and the one across ranks: local sums of
    n_r elements followed by a sum over R ranks meet max n_r - 1 + R - 1 <= n - 1 roundings, R ranks holding
    at least one element each.
    """
    if grade != "A":
        return float(n)
    return float(min(n, n / 512 + 8 * math.log2(n + 1) + 8 + ranks))


def arithmetic(dtype: str, *, n: int, ranks: int, grade: Grade, device: str = "cpu") -> Arithmetic:
    """Return the arithmetic of accumulation dtype `dtype` for reductions over `n` elements."""
    facts, factors = FACTS[dtype], DEVICES[device]
    return Arithmetic(
        u=facts.u + REFERENCE_U,
        eta=facts.smallest_normal,
        largest=facts.largest,
        depth_u=depth(n, ranks, grade) * facts.u + n * REFERENCE_U,
        div=factors.div,
        sqrt=factors.sqrt,
        rsqrt=factors.rsqrt,
    )


def constant_error(value: float, dtype: str) -> float:
    """Return the greatest error of holding the constant `value` in `dtype`: none if it is a short fraction.

    A constant with at most eight significant bits and a moderate exponent is exact in every dtype here.
    """
    mantissa, exponent = math.frexp(value)
    if math.ldexp(mantissa, 8).is_integer() and -14 < exponent < 16:
        return 0.0
    facts = FACTS[dtype]
    return abs(value) * facts.u + (facts.smallest_normal if abs(value) < facts.smallest_normal else 0.0)

"""Pairs: a value with the bound of its error, and what every rule does with them.

A pair (v, e) stands for all numbers a right subject may hold in place of the exact v: |held - v| <= e. `e is
None` means that the number is exact (masks, counts, integers). An infinite e means undecided and stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from reference.rounding import Arithmetic

Array = jax.Array
Error = Array | float | None
Rule = Callable[..., "Sequence[Pair]"]


class Pair(NamedTuple):
    """A value and the bound of its error; None for exact."""

    value: Array
    error: Error = None


def exact(value: Any) -> Pair:
    """Return the pair of an exact value."""
    return Pair(value, None)


def error_of(pair: Pair) -> Array | float:
    """Return the pair's error, 0 for an exact one."""
    return 0.0 if pair.error is None else pair.error


def rounded(value: Array, error: Array | float, arithmetic: Arithmetic, *, units: Any = 1.0) -> Pair:
    """Return the pair after a rounding of `units` u, with underflow; overflow makes it undecided."""
    total = error + units * arithmetic.u * (jnp.abs(value) + error) + arithmetic.eta
    return Pair(value, undecided_beyond(value, total, arithmetic.largest))


def undecided_beyond(value: Array, error: Array | float, largest: Any) -> Array:
    """Return `error`, infinite where |value| + error reaches `largest` or is not a number."""
    return jnp.where(jnp.abs(value) + error < largest, error, jnp.inf)


def evaluate(closed: ClosedJaxpr, *pairs: Pair) -> Array:
    """Return the first result of the closed jaxpr on the pairs' values, without errors."""
    result: Array = jaxpr_as_fun(closed)(*(pair.value for pair in pairs))[0]
    return result

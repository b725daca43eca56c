"""Each rule is sound: no number that a right subject may hold lies beyond the bound.

Inputs are drawn with an error of their own, the operation runs in the dtype's arithmetic (numpy's; bfloat16
from ml_dtypes), and the exact result comes from rational arithmetic or mpmath.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.bounds import bound
from reference.host import precise
from reference.pair import Pair
from reference.rounding import FACTS, arithmetic

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
OPERATIONS = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "sub": (lambda a, b: a - b, lambda a, b: a - b),
    "mul": (lambda a, b: a * b, lambda a, b: a * b),
    "div": (lambda a, b: a / b, lambda a, b: a / b),
}

AT_ONCE = 256
"""Operands that one call is given: drawn by numpy, since drawing one by Hypothesis takes 10 ms."""
SEEDS = st.integers(0, 2**64 - 1)


@cache
def compiled(name):
    functions = {name: function for name, (function, _) in OPERATIONS.items()}
    functions |= {"sqrt": jnp.sqrt, "rsqrt": jax.lax.rsqrt, "square": jnp.square, "neg": lambda a: -a}
    functions |= {"sum": lambda a: jnp.sum(a, axis=0)}
    return jax.jit(bound(functions[name]))


def pairs_of(name, dtype, *pairs, n=1):
    with precise():
        result = compiled(name)(arithmetic(dtype, n=n, ranks=1, grade="B"), *pairs)
        return np.asarray(result.value), np.asarray(result.error)


def pair_of(name, dtype, *pairs):
    value, error = pairs_of(name, dtype, *pairs)
    return float(value), float(error)


def stored(random, dtype, shape):
    """Numbers of the dtype, half of them with a round mantissa, half of moderate size: (*shape,)."""
    p = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}[dtype]
    low, high = {
        "float16": (-24, 15),
        "bfloat16": (-120, 120),
        "float32": (-140, 120),
        "float64": (-300, 300),
    }[dtype]
    any_, round_ = random.integers(0, 2**p, shape), random.choice([0, 1, 2 ** (p - 1), 2**p - 1], shape)
    mantissas = np.where(random.random(shape) < 0.5, any_, round_) * random.choice([-1.0, 1.0], shape)
    exponents = np.where(
        random.random(shape) < 0.5, random.integers(-4, 5, shape), random.integers(low, high + 1, shape)
    )
    with np.errstate(over="ignore"):
        return np.ldexp(mantissas, exponents - p).astype(DTYPES[dtype]).astype(np.float64)


def operands(random, dtype):
    """Exact values, the bounds of their errors, and what a subject holds of them: each (AT_ONCE,)."""
    held = stored(random, dtype, AT_ONCE)
    errors = np.abs(stored(random, dtype, AT_ONCE)) * random.choice([0.0, 0.0, 2.0**-8, 1.0], AT_ONCE)
    exact = held + errors * random.choice([-1.0, -0.5, 0.0, 0.5, 1.0], AT_ONCE)
    rounded = [
        abs(Fraction(x) - Fraction(h)) > Fraction(e) for x, h, e in zip(exact, held, errors, strict=True)
    ]
    return np.where(rounded, held, exact), errors, held


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=4)
@given(seed=SEEDS)
def test_binary_operations_stay_within_their_bound(name, dtype, seed):
    random = np.random.default_rng(seed)
    (a, ea, held_a), (b, eb, held_b) = operands(random, dtype), operands(random, dtype)
    if name == "div":
        b, eb, held_b = (
            np.where((b == 0) | (held_b == 0), one, of) for of, one in ((b, 1), (eb, 0), (held_b, 1))
        )
    kind = DTYPES[dtype]
    with np.errstate(all="ignore"):
        observed = OPERATIONS[name][1](held_a.astype(kind), held_b.astype(kind)).astype(np.float64)
    _, errors = pairs_of(name, dtype, Pair(a, ea), Pair(b, eb))
    assert np.isfinite(errors).sum() > AT_ONCE / 4
    for k in np.flatnonzero(np.isfinite(errors)):
        exact = OPERATIONS[name][1](Fraction(a[k]), Fraction(b[k]))
        assert abs(Fraction(observed[k]) - exact) <= Fraction(errors[k]), (a[k], ea[k], b[k], eb[k])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sqrt", "rsqrt"])
@settings(max_examples=4)
@given(seed=SEEDS)
def test_roots_stay_within_their_bound(name, dtype, seed):
    a, ea, held = operands(np.random.default_rng(seed), dtype)
    kind, both = DTYPES[dtype], (a > 0) & (held > 0)
    a, ea, held = (np.where(both, of, one) for of, one in ((a, 1.0), (ea, 0.0), (held, 1.0)))
    with np.errstate(all="ignore"):
        root = np.sqrt(held.astype(kind))
        observed = (root if name == "sqrt" else kind(1) / root).astype(np.float64)
    _, errors = pairs_of(name, dtype, Pair(a, ea))
    assert np.isfinite(errors).sum() > AT_ONCE / 4
    with mpmath.workdps(60):
        for k in np.flatnonzero(np.isfinite(errors)):
            exact = mpmath.sqrt(mpmath.mpf(a[k]))
            exact = exact if name == "sqrt" else 1 / exact
            assert abs(mpmath.mpf(observed[k]) - exact) <= mpmath.mpf(errors[k]), (a[k], ea[k], held[k])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=4)
@given(seed=SEEDS)
def test_sums_in_any_order_stay_within_their_bound(dtype, seed):
    random = np.random.default_rng(seed)
    held = stored(random, dtype, (8, AT_ONCE))
    with np.errstate(all="ignore"):
        observed = np.zeros(AT_ONCE, DTYPES[dtype])
        for row in random.permuted(held, axis=0).astype(DTYPES[dtype]):
            observed = observed + row
    _, errors = pairs_of("sum", dtype, Pair(held, np.zeros_like(held)), n=8)
    assert np.isfinite(errors).sum() > AT_ONCE / 4
    for k in np.flatnonzero(np.isfinite(errors)):
        exact = sum(map(Fraction, held[:, k]), Fraction(0))
        assert abs(Fraction(float(observed[k])) - exact) <= Fraction(errors[k]), held[:, k]


def test_bound_is_infinite_where_a_divisor_may_be_zero():
    assert pair_of("div", "float32", Pair(1.0, 0.0), Pair(1.0, 1.0))[1] == np.inf


def test_bound_is_infinite_where_a_radicand_may_be_negative():
    assert pair_of("sqrt", "float32", Pair(1.0, 1.5))[1] == np.inf
    assert pair_of("rsqrt", "float32", Pair(1.0, 1.0))[1] == np.inf


def test_bound_is_infinite_where_a_result_may_overflow():
    largest = FACTS["float32"].largest
    assert pair_of("add", "float32", Pair(largest, 0.0), Pair(1.0, 0.0))[1] == np.inf
    assert np.isfinite(pair_of("add", "float32", Pair(largest / 2, 0.0), Pair(1.0, 0.0))[1])


def test_infinite_error_survives_a_product_with_zero():
    assert pair_of("mul", "float32", Pair(0.0, 0.0), Pair(1.0, np.inf))[1] == np.inf


def test_sign_change_adds_no_rounding():
    assert pair_of("neg", "float32", Pair(3.0, 0.25)) == (-3.0, 0.25)


def test_square_carries_the_error_of_both_factors():
    value, error = pair_of("square", "float32", Pair(3.0, 0.5))
    assert value == 9.0
    assert 3.25 <= error < 3.2501


def test_primitive_without_a_rule_is_refused():
    with precise(), pytest.raises(NotImplementedError, match="tan"):
        bound(jnp.tan)(arithmetic("float32", n=1, ranks=1, grade="A"), Pair(jnp.ones(3), jnp.ones(3)))

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
from hypothesis import assume, given, settings
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


@cache
def compiled(name):
    functions = {name: function for name, (function, _) in OPERATIONS.items()}
    functions |= {"sqrt": jnp.sqrt, "rsqrt": jax.lax.rsqrt, "square": jnp.square, "neg": lambda a: -a}
    functions |= {"sum": lambda a: jnp.sum(a, axis=0)}
    return jax.jit(bound(functions[name]))


def pair_of(name, dtype, *pairs, n=1):
    with precise():
        result = compiled(name)(arithmetic(dtype, n=n, ranks=1, grade="B"), *pairs)
        return float(result.value), float(result.error)


def stored(dtype):
    """Numbers of the dtype with moderate exponents, and small and large ones too."""
    p = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}[dtype]
    low, high = {
        "float16": (-24, 15),
        "bfloat16": (-120, 120),
        "float32": (-140, 120),
        "float64": (-300, 300),
    }[dtype]
    return st.builds(
        lambda m, e, s: float(DTYPES[dtype](s * np.ldexp(m, e - p))),
        st.integers(0, 2**p - 1),
        st.one_of(st.integers(-4, 4), st.integers(low, high)),
        st.sampled_from([-1.0, 1.0]),
    )


@st.composite
def operand(draw, dtype):
    """An exact value, the bound of its error, and what the subject holds of it, stored in the dtype."""
    held = draw(stored(dtype))
    error = abs(draw(stored(dtype))) * draw(st.sampled_from([0.0, 0.0, 2.0**-8, 1.0]))
    exact = held + error * draw(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]))
    assume(
        np.isfinite(held) and np.isfinite(exact) and abs(Fraction(exact) - Fraction(held)) <= Fraction(error)
    )
    return exact, error, held


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_binary_operations_stay_within_their_bound(name, dtype, data):
    (a, ea, held_a), (b, eb, held_b) = data.draw(operand(dtype)), data.draw(operand(dtype))
    assume(not (name == "div" and (b == 0 or held_b == 0)))
    exact = OPERATIONS[name][1](Fraction(a), Fraction(b))
    kind = DTYPES[dtype]
    with np.errstate(all="ignore"):
        observed = float(OPERATIONS[name][1](kind(held_a), kind(held_b)))
    _, error = pair_of(name, dtype, Pair(a, ea), Pair(b, eb))
    assert np.isinf(error) or abs(Fraction(observed) - exact) <= Fraction(error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sqrt", "rsqrt"])
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_roots_stay_within_their_bound(name, dtype, data):
    a, ea, held = data.draw(operand(dtype))
    assume(a > 0 and held > 0)
    kind = DTYPES[dtype]
    with np.errstate(all="ignore"):
        root = np.sqrt(kind(held))
        observed = float(root if name == "sqrt" else kind(1) / root)
    with mpmath.workdps(60):
        exact = mpmath.sqrt(mpmath.mpf(a)) if name == "sqrt" else 1 / mpmath.sqrt(mpmath.mpf(a))
        _, error = pair_of(name, dtype, Pair(a, ea))
        assert np.isinf(error) or abs(mpmath.mpf(observed) - exact) <= mpmath.mpf(error)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_sums_in_any_order_stay_within_their_bound(dtype, data):
    kind = DTYPES[dtype]
    held = data.draw(st.lists(stored(dtype), min_size=8, max_size=8))
    order = data.draw(st.permutations(range(8)))
    with np.errstate(all="ignore"):
        observed = kind(0)
        for index in order:
            observed = kind(observed + kind(held[index]))
    exact = sum((Fraction(value) for value in held), Fraction(0))
    _, error = pair_of("sum", dtype, Pair(np.asarray(held), np.zeros(8)), n=8)
    assert np.isinf(error) or abs(Fraction(float(observed)) - exact) <= Fraction(error)


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

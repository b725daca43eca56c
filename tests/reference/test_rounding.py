"""Facts of dtypes, depths and constants."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.rounding import FACTS, arithmetic, constant_error, depth

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


@pytest.mark.parametrize("dtype", DTYPES)
def test_facts_are_those_of_the_dtype(dtype):
    facts, info = FACTS[dtype], ml_dtypes.finfo(DTYPES[dtype])
    assert facts.u == float(info.eps) / 2
    assert facts.smallest_normal == float(info.tiny)
    assert facts.largest == float(info.max)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_overflow_is_the_first_number_that_rounds_to_infinity(dtype):
    threshold = FACTS[dtype].overflow
    with np.errstate(over="ignore"):
        assert np.isinf(np.float64(threshold).astype(DTYPES[dtype]))
        assert np.isfinite(np.float64(threshold * (1 - 2.0**-24)).astype(DTYPES[dtype]))


@given(st.integers(1, 10**7), st.integers(1, 8))
def test_depth_of_grade_a_never_exceeds_that_of_b(n, ranks):
    assert depth(n, ranks, "A") <= depth(n, ranks, "B") == depth(n, ranks, "C") == n


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_depth_covers_local_sums_followed_by_a_sum_over_ranks(counts):
    roundings = max(counts) - 1 + len(counts) - 1
    assert depth(sum(counts), len(counts), "A") >= min(
        roundings, 8 * math.log2(sum(counts) + 1) + 8 + len(counts)
    )
    assert depth(sum(counts), len(counts), "B") >= roundings


def test_depth_is_of_the_true_count_and_grows_slowly_in_grade_a():
    assert depth(8, 1, "A") == 8
    assert depth(10**6, 2, "A") < 2200
    assert depth(1024, 2, "A") < 93


def test_reference_s_own_rounding_is_part_of_the_arithmetic():
    math64 = arithmetic("float64", n=100, ranks=2, grade="A")
    assert math64.u == 2.0**-52
    assert math64.depth_u == (depth(100, 2, "A") + 100) * 2.0**-53


@pytest.mark.parametrize("dtype", DTYPES)
@given(value=st.floats(1e-6, 1.0))
def test_constant_s_error_covers_its_rounding(dtype, value):
    held = float(DTYPES[dtype](value))
    assert abs(held - value) <= constant_error(value, dtype)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 0.25, 3.0])
def test_short_fractions_are_exact_in_every_dtype(value):
    assert all(constant_error(value, dtype) == 0.0 for dtype in DTYPES)


def test_devices_have_their_own_factors():
    cuda = arithmetic("float32", n=1, ranks=1, grade="A", device="cuda")
    assert cuda.rsqrt > arithmetic("float32", n=1, ranks=1, grade="A").rsqrt

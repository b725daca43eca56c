"""Relation: a common factor or shift of all wrong elements is told, and nothing that is not so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties.judge.relation import relation

EXPECTED = np.array([-1.25, 0.5, 2.0, 3.75])
BOUND = np.full(4, 1e-6)


@pytest.mark.parametrize(
    ("observed", "words"),
    [
        (2 * EXPECTED, "2 x what is expected"),
        (-EXPECTED, "-1 x what is expected"),
        (EXPECTED * 4 / 3, "4/3 x what is expected"),
        (1.2345 * EXPECTED, "1.234 x what is expected"),
        (EXPECTED + 0.25, "what is expected + 0.25"),
        (EXPECTED - 7, "what is expected - 7"),
        (np.zeros(4), "0"),
        (EXPECTED[::-1].copy(), ""),
        (np.array([np.nan, 1.0, 2.0, 3.0]), ""),
        (np.array([np.inf, 1.0, 2.0, 3.0]), ""),
    ],
)
def test_what_all_wrong_elements_have_in_common(observed, words):
    assert relation(observed, EXPECTED, BOUND) == words


def test_of_two_elements_no_difference_is_told_and_of_one_a_fraction_alone():
    assert relation(EXPECTED[:2] + 0.25, EXPECTED[:2], BOUND[:2]) == ""
    assert relation(EXPECTED[:1] / 2, EXPECTED[:1], BOUND[:1]) == "1/2 x what is expected"
    assert relation(np.zeros(1), EXPECTED[:1], BOUND[:1]) == "0"
    assert relation(EXPECTED[:1] * 1.2345, EXPECTED[:1], BOUND[:1]) == ""


def test_what_is_rounded_otherwise_has_no_factor():
    """One half unit in the last place of bfloat16: the same multiple within the bounds, by chance."""
    expected = np.array([0.7694887, -1.4123])
    assert relation(np.array([0.765625, -1.40625]), expected, np.array([3e-3, 5e-3])) == ""


def test_what_many_factors_would_give_is_none():
    """Elements whose bounds are wide allow a factor from here to there, which says nothing."""
    assert relation(2 * EXPECTED, EXPECTED, np.full(4, 0.1)) == ""


def test_a_zero_is_no_multiple():
    expected = np.array([0.0, 1.0, 2.0])
    assert relation(np.array([0.5, 2.0, 4.0]), expected, BOUND[:3]) == ""


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6), st.floats(-4, 4), st.floats(1e-9, 1e-3))
def test_a_factor_that_is_told_is_within_every_bound(expected, factor, bound):
    right, bounds = np.array(expected), np.full(len(expected), bound)
    observed = factor * right + np.linspace(-0.5, 0.5, len(right)) * bound
    told = relation(observed, right, bounds)
    if told.endswith("x what is expected") and "/" not in told:
        given_factor = float(told.split()[0])
        assert (np.abs(observed - given_factor * right) <= bounds + 1e-3 * np.abs(observed)).all()

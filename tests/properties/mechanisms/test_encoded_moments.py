"""Decoding: whether a variance is computed as zero, and what counts that are rounded make of the moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expect import start
from properties.expectation.group_step import step_input
from properties.mechanisms.encoded_moments import local_moments, merged_by_counts, zero_variances
from properties.mechanisms.step_data import StepData
from properties.values.elements import drawn


def step_of(case: Case) -> StepData:
    group = tuple(range(case.world_size))
    walk = start(
        case, Contract(), "A", device="cpu", group=group, inputs=drawn(case, group, channels_last=True)
    )
    where, given_input, _ = step_input(walk, 0, group, training=True)
    return StepData.of(given_input, where)


def with_values(data: StepData, values: list[float]) -> StepData:
    """Return the data with the first rank's only channel replaced."""
    from dataclasses import replace

    x = data.x.copy()
    x.reshape(-1, x.shape[-1])[: len(values), 0] = values
    return replace(data, x=x)


def variance_in_float32(values: list[float]) -> float:
    """Return the two-pass variance, every operation rounded to float32."""
    x = np.array(values, np.float32)
    mean = np.float32(0)
    for value in x:
        mean = np.float32(mean + value)
    mean = np.float32(mean / np.float32(len(x)))
    total = np.float32(0)
    for value in x:
        total = np.float32(total + np.float32(np.float32(value - mean) ** 2))
    return float(np.float32(total / np.float32(len(x))))


tiny = st.sampled_from([2.0**-e for e in (60, 70, 73, 74, 75, 76, 80, 100, 126, 140)])
number = st.floats(-4.0, 4.0, width=32).filter(lambda value: value == 0 or abs(value) > 2.0**-20)


@given(
    base=number, spread=tiny, steps=st.lists(st.integers(0, 3), min_size=1, max_size=6), equal=st.booleans()
)
def test_a_variance_that_is_surely_zero_is_computed_as_zero_and_one_that_cannot_be_is_not(
    base: float, spread: float, steps: list[int], *, equal: bool
) -> None:
    values = [base] * len(steps) if equal else [float(np.float32(step * spread)) for step in steps]
    data = with_values(step_of(Case(batches=(len(values), 1))), values)
    surely, possibly = zero_variances(local_moments(data), data, "float32")
    computed = variance_in_float32(values)
    assert computed == 0 or not surely[0, 0]
    assert computed != 0 or possibly[0, 0]


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.1], [0.5] * 3, [2.0**-80, 0.0]])
def test_it_is_surely_zero_where_nothing_is_rounded(values: list[float]) -> None:
    rounded = [float(np.float32(value)) for value in values]
    data = with_values(step_of(Case(batches=(len(values), 1))), rounded)
    assert zero_variances(local_moments(data), data, "float32")[0][0, 0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_small_counts_merge_to_the_moments_of_the_whole_batch(dtype: str) -> None:
    case = Case(batches=(3, 0, 5), spatial=((7,),), channels=3, rank_offset=2, seed=4)
    data = step_of(case)
    merged = merged_by_counts(local_moments(data), data, dtype)  # type: ignore[arg-type]
    blocks = [block for block, _ in drawn(case, (0, 1, 2)).values()]
    x = np.concatenate([np.moveaxis(block, 1, 0).reshape(3, -1) for block in blocks], axis=1)
    assert merged.total == 56
    np.testing.assert_array_less(np.abs(merged.mean[:3] - x.mean(axis=1)), merged.mean_error[:3])
    np.testing.assert_array_less(
        np.abs(merged.squares[:3] / 56 - x.var(axis=1)), merged.squares_error[:3] / 56
    )


def test_counts_beyond_a_half_dtype_weigh_ranks_otherwise() -> None:
    case = Case(batches=(259, 777), dtype="bfloat16", param_dtype="bfloat16", rank_offset=1, seed=2)
    data = step_of(case)
    local = local_moments(data)
    merged = merged_by_counts(local, data, "bfloat16")
    assert merged.mean[0] == pytest.approx((260 * local.mean[0, 0] + 776 * local.mean[1, 0]) / 1040)
    assert merged.total == 260 + 776  # an int, whatever bfloat16 makes of 1036


def test_a_total_beyond_float16_makes_the_mean_zero_and_counts_on() -> None:
    case = Case(batches=(40000, 40000), dtype="float16", param_dtype="float16")
    data = step_of(case)
    merged = merged_by_counts(local_moments(data), data, "float16")
    assert (merged.mean[0], merged.total) == (0.0, 80000)

"""The bounded comparison, element by element."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties.case import Step
from properties.judge.bounded import ratios
from properties.verdict import Outcome


def ratio_of(observed, value, bound, *, overflows=False):
    one = np.array([value], float)
    return float(ratios(one, np.array([bound], float), np.array([overflows]), np.array([observed]))[0])


@pytest.mark.parametrize(
    ("observed", "value", "bound", "ratio"),
    [
        (1.5, 1.0, 1.0, 0.5),
        (3.0, 1.0, 1.0, 2.0),
        (1.0, 1.0, 0.0, 0.0),
        (1.0 + 2**-52, 1.0, 0.0, math.inf),
        (math.nan, 1.0, 1e300, math.inf),
        (math.nan, 1.0, 0.0, math.inf),
        (math.inf, 1.0, 1e300, math.inf),
        (-0.0, 0.0, 0.0, 0.0),
        (5.0, 1.0, math.inf, 0.0),
        (math.nan, 1.0, math.inf, 0.0),
        (5.0, math.nan, 1.0, 0.0),
        (1e308, -1e308, 1.0, math.inf),
    ],
)
def test_ratio_is_difference_over_bound_and_infinite_where_no_bound_can_excuse(observed, value, bound, ratio):
    assert ratio_of(observed, value, bound) == ratio


@pytest.mark.parametrize(("observed", "value", "ratio"), [(math.inf, 7e4, 0.0), (-math.inf, -7e4, 0.0)])
def test_a_stored_infinity_of_the_right_sign_is_right_where_the_expected_value_overflows(
    observed, value, ratio
):
    assert ratio_of(observed, value, 1.0, overflows=True) == ratio
    assert ratio_of(-observed, value, 1.0, overflows=True) == math.inf
    assert ratio_of(observed, value, 1.0, overflows=False) == math.inf


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1e6).map(lambda b: b * 2))
def test_a_wider_bound_never_raises_a_ratio(observed, value, bound, more):
    assert ratio_of(observed, value, bound + more) <= ratio_of(observed, value, bound)


def test_a_right_observation_satisfies_every_property(scene):
    outcomes = scene(batches=(2, 3), channels=3, spatial=((2, 2),)).outcomes()
    assert set(outcomes.values()) == {"HOLDS"}
    assert {"forward", "running_mean", "running_var", "grad_input", "grad_weight", "grad_bias"} <= set(
        outcomes
    )


@pytest.mark.parametrize(
    ("name", "property_id"),
    [
        ("output.0", "forward"),
        ("grad_input.1", "grad_input"),
        ("grad_weight.1", "grad_weight"),
        ("grad_bias.0", "grad_bias"),
        ("running_mean.1", "running_mean"),
        ("running_var.0", "running_var"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_one_element_beyond_its_bound_violates_the_property_of_its_quantity(scene, name, property_id, dtype):
    one = scene(
        batches=(2, 3),
        channels=3,
        dtype=dtype,
        param_dtype=dtype,
        steps=(Step(), Step(mode="eval")),
    )
    held = one.ranks[1].tensors[name]
    index = (1, 2)[-held.array.ndim :]
    shifted = held.array.copy()
    shifted[index] += np.asarray(2, shifted.dtype)
    one.put(1, name, msgspec.structs.replace(held, array=shifted))
    assert property_id in one.violated()
    assert one.violated() <= {property_id, "agreement"}
    found = one.verdicts()[property_id].discrepancies[0]
    assert (found.quantity, found.rank, found.index) == (name, 1, index)
    assert (found.mismatched, found.mismatched_ranks, found.channels) == (1, (1,), (2,))
    expected = one.expected.tensors[name][1].value[index]
    assert found.expected == expected
    assert found.ratio == pytest.approx(abs(found.observed - expected) / 1e-6)
    width = {"float64": 16, "float32": 8}.get(dtype, 4)
    assert len(found.observed_bits) == 2 + width
    assert int(found.observed_bits, 16) == int.from_bytes(shifted[index].tobytes(), "little")


def test_discrepancies_are_one_a_name_with_the_greatest_ratio_first_and_counts_over_all_ranks(scene):
    one = scene(batches=(2, 3), channels=4, steps=(Step(), Step()))
    one.spoil(0, "output.0", (1, 3), 10.0)
    one.spoil(1, "output.0", (0, 1), 100.0)
    one.spoil(1, "output.0", (2, 1), 50.0)
    one.spoil(0, "output.1", (0, 0), 1000.0)
    verdict = one.verdicts()["forward"]
    assert [found.quantity for found in verdict.discrepancies] == ["output.1", "output.0"]
    second = verdict.discrepancies[1]
    assert (second.rank, second.index, second.mismatched) == (1, (0, 1), 3)
    assert (second.elements, second.channels, second.mismatched_ranks) == (20, (1, 3), (0, 1))
    assert verdict.max_ratio == verdict.discrepancies[0].ratio == verdict.ratios["output float32"]


def test_an_unbounded_element_is_undecided_and_a_property_of_such_elements_alone_is(scene, interval):
    one = scene(batches=(2,), channels=2)
    one.expected.tensors["output.0"][0] = interval([[1.0, 1.0], [1.0, 1.0]], [[1.0, np.inf], [1.0, np.inf]])
    verdict = one.verdicts()["forward"]
    assert (verdict.outcome, verdict.elements, verdict.undecided) == (Outcome.HOLDS, 4, 2)
    one.expected.tensors["output.0"][0] = interval(np.ones((2, 2)), np.inf)
    verdict = one.verdicts()["forward"]
    assert (verdict.outcome, verdict.undecided, verdict.ratios) == (Outcome.UNDECIDED, 4, {})


def test_elements_are_blind_where_the_bound_exceeds_the_expected_magnitude(scene, interval, tensor):
    one = scene(batches=(1,), channels=4)
    one.expected.tensors["output.0"][0] = interval([[1.0, -1.0, 0.5, np.nan]], [[1.0, 1.1, 0.6, 9.0]])
    one.put(0, "output.0", tensor([[1.0, -1.0, 0.5, np.nan]], requires_grad=True))
    verdict = one.verdicts()["forward"]
    assert (verdict.blind, verdict.elements) == (2, 3)


def test_an_expected_zero_is_not_blind_for_the_allowance_of_subnormal_numbers_alone(scene, interval, tensor):
    one = scene(batches=(1,), channels=3)
    one.expected.tensors["output.0"][0] = interval([[0.0, 0.0, 0.0]], [[0.0, 2.0**-120, 1e-9]])
    one.put(0, "output.0", tensor([[0.0, 0.0, 0.0]], requires_grad=True))
    assert one.verdicts()["forward"].blind == 1


def test_a_missing_tensor_is_a_violation_of_its_quantity_unless_it_is_optional(scene):
    one = scene(batches=(2, 2), channels=1)
    one.put(1, "grad_weight.0", None)
    assert one.violated() == {"grad_weight"}
    found = one.verdicts()["grad_weight"].discrepancies[0]
    assert (found.observed, found.rank, found.mismatched_ranks) == ("absent", 1, (1,))
    by_rank = one.expected.tensors["grad_weight.0"]
    by_rank[1] = msgspec.structs.replace(by_rank[1], optional=True)
    assert one.violated() == set()


def test_a_surplus_tensor_is_a_violation_of_its_quantity(scene, tensor):
    one = scene(batches=(2, 2), channels=1, tracking=False)
    assert "running_mean" not in one.verdicts()
    one.put(0, "running_mean.0", tensor([0.0]))
    assert one.violated() >= {"running_mean"}
    assert one.verdicts()["running_mean"].discrepancies[0].observed == "present"


def test_a_tensor_of_another_shape_is_left_to_dtype_and_layout(scene, tensor):
    one = scene(batches=(2,), channels=2)
    one.put(0, "output.0", tensor(np.ones((2, 3)), requires_grad=True))
    assert one.violated() == {"dtype_and_layout"}
    assert one.outcomes()["forward"] == "UNDECIDED"


def test_a_wider_dtype_is_still_compared_and_a_narrower_one_is_not(scene):
    one = scene(batches=(2,), channels=2)
    held = one.ranks[0].tensors["output.0"]
    wide = msgspec.structs.replace(held, dtype="float64", array=held.array.astype(np.float64) + 1)
    one.put(0, "output.0", wide)
    assert one.violated() == {"dtype_and_layout", "forward"}
    narrow = msgspec.structs.replace(held, dtype="float16", array=held.array.astype(np.float16) + 1)
    one.put(0, "output.0", narrow)
    assert one.violated() == {"dtype_and_layout"}


def test_a_group_with_a_rank_that_did_not_return_is_not_compared_and_another_group_is(scene):
    one = scene(batches=(2, 2, 2), channels=1, groups=((0, 2), (1,)))
    for rank in (0, 1):
        one.spoil(rank, "output.0", (0, 0), 9.0)
    one.change(2, ending="timeout")
    verdict = one.verdicts()["forward"]
    assert verdict.discrepancies[0].mismatched_ranks == (1,)
    one.change(1, ending="stopped")
    assert one.outcomes()["forward"] == "UNDECIDED"
    assert one.outcomes()["ending"] == "VIOLATED"


def test_empty_tensors_hold_without_elements(scene):
    one = scene(batches=(0, 0), channels=2)
    verdict = one.verdicts()["forward"]
    assert (verdict.outcome, verdict.elements, verdict.max_ratio) == (Outcome.HOLDS, 0, 0.0)

"""nonfinite: judged by class, and apart from the bounded comparison."""

import numpy as np
import pytest


@pytest.mark.parametrize("bound", [0.0, 1.0, np.nan])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_any_non_finite_number_will_do_where_one_is_expected(scene, interval, tensor, poison, bound):
    one = scene(batches=(1,), channels=3)
    one.expected.tensors["output.0"][0] = interval([[np.nan, 1.0, 2.0]], [[bound, 1.0, 1.0]])
    one.put(0, "output.0", tensor([[poison, 1.0, 2.0]], requires_grad=True))
    assert one.violated() == set()
    assert one.verdicts()["nonfinite"].elements == 1
    assert one.verdicts()["forward"].elements == 2


def test_a_finite_number_where_a_non_finite_one_is_expected_violates_nonfinite_alone(scene, interval, tensor):
    one = scene(batches=(1,), channels=3)
    one.expected.tensors["output.0"][0] = interval([[np.nan, 1.0, 2.0]])
    one.put(0, "output.0", tensor([[0.0, 1.0, 2.0]], requires_grad=True))
    assert one.violated() == {"nonfinite"}
    found = one.verdicts()["nonfinite"].discrepancies[0]
    assert (found.quantity, found.index, found.observed, found.channels) == ("output.0", (0, 0), 0.0, (0,))


def test_a_poisoned_neighbour_violates_the_bounded_comparison_alone(scene, interval, tensor):
    one = scene(batches=(1,), channels=3)
    one.expected.tensors["output.0"][0] = interval([[np.nan, 1.0, 2.0]])
    one.put(0, "output.0", tensor([[np.nan, 1.0, np.nan]], requires_grad=True))
    assert one.violated() == {"forward"}
    assert one.verdicts()["forward"].discrepancies[0].index == (0, 2)
    assert one.verdicts()["forward"].discrepancies[0].observed == "nan"


def test_an_undecided_element_is_asked_nothing(scene, interval, tensor):
    one = scene(batches=(1,), channels=2)
    one.expected.tensors["output.0"][0] = interval([[np.nan, 1.0]], [[np.inf, 1.0]])
    one.put(0, "output.0", tensor([[3.0, 1.0]], requires_grad=True))
    assert "nonfinite" not in one.verdicts()
    assert one.verdicts()["forward"].undecided == 1

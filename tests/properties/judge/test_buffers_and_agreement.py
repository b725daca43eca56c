"""num_batches_tracked and agreement (the bounds of the running buffers are test_elementwise's)."""

import numpy as np
import pytest

from properties.observation import Tensor


@pytest.mark.parametrize("value", [0, 2, None])
def test_a_wrong_count_of_batches_is_a_violation(scene, tensor, value):
    one = scene(batches=(2, 2), groups=((0,), (1,)))
    one.put(1, "num_batches_tracked.0", None if value is None else tensor(value, "int64"))
    assert one.violated() == {"num_batches_tracked"}
    found = one.verdicts()["num_batches_tracked"].discrepancies[0]
    assert (found.rank, found.expected) == (1, "1")
    assert found.observed == ("absent" if value is None else str(value))


def test_a_count_where_none_is_expected_is_a_violation(scene, tensor):
    one = scene(batches=(2,), tracking=False)
    assert "num_batches_tracked" not in one.verdicts()
    one.put(0, "num_batches_tracked.0", tensor(1, "int64"))
    assert one.violated() == {"num_batches_tracked"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["running_mean.0", "running_var.0"])
def test_buffers_that_differ_in_the_last_bit_violate_agreement_within_a_group(scene, tensor, name, dtype):
    one = scene(batches=(2, 0, 2), channels=3, dtype=dtype, param_dtype=dtype, groups=((0, 1), (2,)))
    for rank, guilty in ((2, False), (1, True)):
        held = one.ranks[rank].tensors[name]
        array = held.array.copy()
        view = array.view(np.uint16 if array.itemsize == 2 else np.uint32)
        view[1] += np.asarray(1, view.dtype)
        one.put(rank, name, type(held)(dtype=held.dtype, array=array))
        assert ("agreement" in one.violated()) is guilty
    found = one.verdicts()["agreement"].discrepancies[0]
    assert (found.quantity, found.rank, found.index, found.channels) == (name, 1, (1,), (1,))


def test_nans_agree_by_class_and_zeros_of_different_sign_do_not(scene, tensor):
    one = scene(batches=(2, 2), channels=2)
    quiet = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    other = np.array([0xFFC00000, 0x7FC00002], np.uint32).view(np.float32)
    one.put(0, "running_mean.0", tensor(quiet))
    one.put(1, "running_mean.0", tensor(other))
    assert "agreement" not in one.violated()
    one.put(0, "running_mean.0", tensor([0.0, np.inf]))
    one.put(1, "running_mean.0", tensor([-0.0, np.inf]))
    assert one.verdicts()["agreement"].discrepancies[0].mismatched == 1


def test_bfloat16_nans_agree_by_class(scene):
    one = scene(batches=(2, 2), channels=1, dtype="bfloat16", param_dtype="bfloat16")
    for rank, bits in ((0, 0x7FC0), (1, 0xFFC1)):
        one.put(rank, "running_mean.0", Tensor(dtype="bfloat16", array=np.array([bits], np.uint16)))
    assert "agreement" not in one.violated()
    one.put(1, "running_mean.0", Tensor(dtype="bfloat16", array=np.array([0x7F80], np.uint16)))
    assert "agreement" in one.violated()


def test_counts_of_batches_must_agree_too(scene, tensor):
    one = scene(batches=(2, 2))
    one.expected.tracked["num_batches_tracked.0"][1] = 7
    one.put(1, "num_batches_tracked.0", tensor(7, "int64"))
    assert one.violated() == {"agreement"}


def test_a_buffer_on_some_ranks_only_and_one_of_another_dtype_violate_agreement(scene, tensor):
    one = scene(batches=(2, 2))
    one.put(1, "running_var.0", None)
    assert one.violated() == {"agreement", "running_var"}
    one.put(1, "running_var.0", tensor([1.5], "float64"))
    assert "agreement" in one.violated()


def test_groups_of_one_rank_have_nothing_to_agree_on(scene):
    assert "agreement" not in scene(batches=(2, 2), groups=((0,), (1,))).verdicts()

"""CUDA kernels: which of them takes a tensor, and how many threads share it."""

from __future__ import annotations

import pytest

from properties.case import Case
from properties.mechanisms.cuda_kernels import (
    extra_depth,
    goes_to_cudnn,
    halves_mean,
    halves_partial_sums,
    levels,
    loses_strided_update,
)

HALF = {"batches": (4,), "channels": 3, "spatial": ((2, 2),), "dtype": "float16", "param_dtype": "float16"}


@pytest.mark.parametrize(
    ("changes", "synchronised", "halves"),
    [
        ({}, False, True),
        ({}, True, True),
        ({"dtype": "float32", "param_dtype": "float32"}, True, False),
        ({"input_layout": "channels_last"}, True, True),  # the cotangent is not
        ({"input_layout": "channels_last", "cotangent_layout": "channels_last"}, True, False),
        ({"spatial": ((1, 1),), "input_layout": "permuted"}, True, False),  # made contiguous before
        ({"spatial": ((),), "input_layout": "permuted"}, False, True),
        ({"spatial": ((),)}, False, False),
        ({"param_dtype": "float32"}, False, False),  # cuDNN
        ({"param_dtype": "float32"}, True, True),
        ({"channels": 1}, True, False),  # contiguous in both formats
        ({"channels": 1, "spatial": ((),)}, True, False),
        ({"channels": 1, "spatial": ((),), "input_layout": "sliced"}, True, True),  # no copy, any stride
        ({"batches": (0,)}, True, False),
        (
            {"spatial": ((2, 1, 2),), "input_layout": "channels_last", "cotangent_layout": "channels_last"},
            True,
            True,
        ),
    ],
)
def test_partial_sums_of_half_inputs(changes, synchronised, halves):
    case = Case(**{**HALF, **changes})
    assert halves_partial_sums(case, 0, synchronised=synchronised, training=True) == halves


def test_an_evaluation_has_no_backward_by_cudnn():
    case = Case(**{**HALF, "param_dtype": "float32"})
    assert halves_partial_sums(case, 0, synchronised=False, training=False)


@pytest.mark.parametrize(
    ("batch", "positions", "found"), [(1, 1, 0), (2, 2, 2), (1, 33, 6), (16, 1, 4), (64, 64, 9), (3, 4, 4)]
)
def test_levels_of_the_shuffles(batch, positions, found):
    assert levels(Case(batches=(batch,), spatial=((positions,),)), 0) == found


@pytest.mark.parametrize(
    ("batch", "spatial", "narrow"),
    [
        (23343, (3,), True),  # as an H200 gave
        (20000, (2,), True),
        (20000, (), False),
        (64, (32, 32), False),
        (64, (56, 56), True),  # 7 positions a thread, not 6.1
        (16, (3,), False),
        (500000, (1,), False),
    ],
)
def test_few_threads_have_many_values(batch, spatial, narrow):
    assert (extra_depth(Case(batches=(batch,), channels=2, spatial=(spatial,)), 0) > 0) == narrow


def test_the_depth_is_what_a_thread_has_in_place_of_its_share():
    found = extra_depth(Case(batches=(23343,), spatial=((3,),)), 0)
    assert found == 23343 // 16 + 1 - 3 * 23343 / 512


@pytest.mark.parametrize(
    ("changes", "cudnn"),
    [
        ({}, True),
        ({"spatial": ((),)}, False),
        ({"affine": "weight"}, False),
        ({"eps": 1e-8}, True),
        ({"dtype": "float16", "param_dtype": "float16"}, False),
        ({"dtype": "float16"}, True),
        ({"dtype": "float64", "param_dtype": "float64"}, True),
        ({"dtype": "bfloat16"}, False),
    ],
)
def test_what_torch_gives_to_cudnn(changes, cudnn):
    case = Case(**{"batches": (4,), "channels": 3, "spatial": ((2, 2),), "strided_buffers": True, **changes})
    assert goes_to_cudnn(case, 0, training=True) == cudnn
    assert loses_strided_update(case, 0) == cudnn


def test_the_mean_of_a_strided_float16_input_is_rounded():
    assert halves_mean(Case(**{**HALF, "input_layout": "sliced"}), 0)
    assert halves_mean(Case(**{**HALF, "input_layout": "channels_last", "spatial": ((2, 1, 2),)}), 0)
    assert not halves_mean(Case(**HALF), 0)
    assert not halves_mean(Case(**{**HALF, "input_layout": "channels_last"}), 0)
    bfloat = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    assert not halves_mean(Case(**{**HALF, "input_layout": "sliced", **bfloat}), 0)
    assert not halves_mean(Case(**{**HALF, "input_layout": "sliced", "param_dtype": "float32"}), 0)

"""Layouts: the same values, however they lie in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verify.ranks.layouts import lay_out, same_bits, strided

SHAPE = (3, 4, 2, 5)
VALUES = np.arange(120, dtype=np.float64).reshape(3, 4, 10) / 8
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("layout", "strides"),
    [
        ("contiguous", (40, 10, 5, 1)),
        ("channels_last", (40, 1, 20, 4)),
        ("permuted", (1, 3, 12, 24)),
        ("sliced", (165, 33, 11, 2)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_layout_has_the_same_values(layout, strides, dtype):
    laid = lay_out(VALUES, layout, dtype=dtype, device=CPU, shape=SHAPE)
    assert laid.tensor.dtype == dtype
    assert laid.tensor.stride() == strides
    assert laid.tensor.double().numpy().tolist() == VALUES.reshape(SHAPE).tolist()
    laid.storage.zero_()
    assert not laid.tensor.any(), "the storage must be what the tensor is a view of"


def test_an_expanded_cotangent_has_no_stride_but_over_channels():
    values = np.arange(4, dtype=np.float64).reshape(1, 4, 1)
    laid = lay_out(values, "expanded", dtype=torch.float32, device=CPU, shape=SHAPE)
    assert laid.tensor.stride() == (0, 1, 0, 0)
    assert laid.tensor[2, :, 1, 3].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced"])
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (6,)])
def test_small_shapes_and_empty_ones_lie_in_every_layout(layout, shape):
    values = np.ones(shape)
    assert lay_out(values, layout, dtype=torch.float32, device=CPU, shape=shape).tensor.shape == shape


def test_same_bits_tells_zeros_apart_and_lets_nan_equal_itself():
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(torch.tensor([1]), torch.tensor([2]))


def test_strided_keeps_values():
    view = strided(torch.arange(3.0))
    assert view.stride() == (2,)
    assert view.tolist() == [0, 1, 2]

"""Layouts: the same values, however they lie in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from properties.values.period import repeated
from verify.ranks.worker import memory_layouts
from verify.ranks.worker.memory_layouts import Before, handed_on, lay_out, same_bits, strided

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
        ("cropped", (64, 16, 8, 1)),
        ("split", (60, 10, 5, 1)),
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


@pytest.mark.parametrize("one_by_one", [0, 256])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "cropped", "split"])
@pytest.mark.parametrize("shape", [(9, 4, 2, 5), (40, 4, 1, 1), (2, 4, 30, 1), (11, 4, 1, 1)])
def test_one_period_of_a_block_lies_in_memory_as_the_whole_block(monkeypatch, shape, layout, one_by_one):
    monkeypatch.setattr(memory_layouts, "SAMPLES_ONE_BY_ONE", one_by_one)
    once = np.arange(44, dtype=np.float64).reshape(1, 4, 11)
    whole = repeated(once, (shape[0], 4, shape[2] * shape[3]))
    one, other = (
        lay_out(values, layout, dtype=torch.bfloat16, device=CPU, shape=shape) for values in (once, whole)
    )
    assert one.tensor.stride() == other.tensor.stride()
    assert torch.equal(one.tensor, other.tensor)
    assert one.storage.shape == other.storage.shape
    kept = Before(one)
    assert (one.period is not None) is (layout == "contiguous" and one_by_one > 0)
    assert kept.held_by(one.storage)
    one.tensor[-1, 3, 0, 0] += 1
    assert not kept.held_by(one.storage)


def test_a_storage_of_another_shape_or_dtype_does_not_hold_what_it_held():
    once = np.arange(44, dtype=np.float64).reshape(1, 4, 11)
    laid = lay_out(once, "contiguous", dtype=torch.float32, device=CPU, shape=(9, 4, 10))
    kept = Before(laid)
    assert not kept.held_by(laid.storage.view(9, 4, 5, 2))
    assert not kept.held_by(laid.storage[:8])
    assert not kept.held_by(laid.storage.double())
    assert kept.held_by(laid.storage)


def test_an_expanded_cotangent_has_no_stride_but_over_channels():
    values = np.arange(4, dtype=np.float64).reshape(1, 4, 1)
    laid = lay_out(values, "expanded", dtype=torch.float32, device=CPU, shape=SHAPE)
    assert laid.tensor.stride() == (0, 1, 0, 0)
    assert laid.tensor[2, :, 1, 3].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced", "cropped", "split"])
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


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "cropped", "split"])
def test_what_a_layer_hands_on_lies_like_the_input_may_be_written_to_and_passes_its_gradient_on(layout):
    values = np.arange(2.0 * 3 * 2 * 4).reshape(2, 3, 8)
    shape = (2, 3, 2, 4)
    leaf = lay_out(values, layout, dtype=torch.float32, device=torch.device("cpu"), shape=shape)
    before = Before(leaf)
    leaf.tensor.requires_grad_()
    given = handed_on(leaf.tensor)
    assert (given.stride(), given.storage_offset()) == (leaf.tensor.stride(), leaf.tensor.storage_offset())
    assert not given.is_leaf
    assert torch.equal(given, leaf.tensor)
    given.mul_(2).sub_(1)
    cotangent = torch.arange(48.0).reshape(shape)
    given.backward(cotangent)
    assert torch.equal(leaf.tensor.grad, 2 * cotangent)
    assert before.held_by(leaf.storage)

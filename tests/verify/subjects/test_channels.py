"""Tests of the channel axis: columns, their inverse, layouts, and why sums run over columns."""

import pytest
import torch

from verify.subjects.channels import accumulation_dtype, across, columns, native_layout, uncolumns

SHAPES = [(4, 3), (0, 3), (2, 3, 5), (2, 3, 4, 5), (0, 3, 4, 5), (2, 3, 2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_uncolumns_undoes_columns_whatever_the_layout(shape: tuple[int, ...]) -> None:
    x = torch.arange(torch.tensor(shape).prod().item(), dtype=torch.float32).reshape(shape)
    axes = tuple(reversed(range(x.dim())))
    permuted = x.permute(axes).contiguous().permute(axes)
    assert torch.equal(uncolumns(columns(permuted), permuted), x)
    assert columns(x).shape == (3, x.numel() // 3)


def test_columns_of_half_tensors_accumulate_in_float32() -> None:
    assert columns(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert accumulation_dtype(torch.float64) == torch.float64


def test_across_broadcasts_over_channels() -> None:
    x = torch.zeros(2, 3, 4, 5)
    assert (x + across(torch.tensor([1.0, 2.0, 3.0]), x))[1, :, 3, 4].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_output_has_the_layout_of_native_batch_norm(shape: tuple[int, ...]) -> None:
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    axes = tuple(reversed(range(len(shape))))
    plain = torch.randn(shape)
    for x in (plain, plain.contiguous(memory_format=last), plain.permute(axes).contiguous().permute(axes)):
        native = torch.nn.functional.batch_norm(x, None, None, training=True)
        assert native_layout(x * 1.0, x).stride() == native.stride()


def test_sums_over_columns_are_pairwise_where_sums_over_two_axes_are_not() -> None:
    x = torch.rand(65536, 2, 2, generator=torch.Generator().manual_seed(0))
    exact = x.double().sum((0, 2))
    error = {
        "columns": ((columns(x).sum(1) - exact).abs() / exact).max().item(),
        "axes": ((x.sum((0, 2)) - exact).abs() / exact).max().item(),
    }
    assert error["columns"] < 4 * 2.0**-24 < error["axes"]

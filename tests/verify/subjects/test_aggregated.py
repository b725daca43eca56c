"""Tests of the aggregation of statistics: merging in one process, the whole of it on real ranks."""

import numpy as np
import pytest
import torch

from properties.case import Case, Step
from verify.ranks.pool import RankPool
from verify.subjects.aggregated import Aggregated, Moments, inverse_deviation, local_moments, merge

SPEC = "verify.subjects.aggregated:Aggregated"


def test_merged_moments_are_those_of_the_whole_batch() -> None:
    x = torch.randn(23, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 7.0
    merged = merge([local_moments(part) for part in x.split([1, 0, 15, 7])])
    assert merged.count == 69
    torch.testing.assert_close(merged.mean, x.mean((0, 2)))
    torch.testing.assert_close(merged.var, x.var((0, 2), unbiased=False))


def test_merge_keeps_its_digits_under_a_large_offset() -> None:
    x = torch.randn(512, 1, generator=torch.Generator().manual_seed(2)) + 1e4
    exact = x.double().var(0, unbiased=False)
    merged = merge([local_moments(part) for part in x.split([100, 12, 400])]).var
    one_pass = (x.square().mean(0) - x.mean(0).square()).double()
    assert abs(merged - exact) < 1e-3 * exact < abs(one_pass - exact)


def test_merge_of_empty_parts_is_empty_and_wants_what_any_part_wants() -> None:
    zero = torch.zeros(2)
    assert merge([Moments(0, zero, zero), Moments(0, zero, zero)]).count == 0
    assert merge([Moments(0, zero, zero), Moments(3, zero, zero, True)]).wants_gradient


def test_nothing_is_divided_by_a_zero_deviation() -> None:
    assert inverse_deviation(torch.tensor([0.0, 4.0]), 0.0).tolist() == [0.0, 0.5]


def test_alone_it_is_native_batch_norm() -> None:
    x = torch.randn(6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    g = torch.randn(6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    seen = []
    for module in (Aggregated(3, dtype=torch.float64), torch.nn.BatchNorm1d(3, dtype=torch.float64)):
        y = module(x)
        grads = torch.autograd.grad(y, (x, module.weight, module.bias), g)
        seen.append((y.detach(), *grads, module.running_mean, module.running_var))
    for mine, native in zip(*seen, strict=True):
        torch.testing.assert_close(mine, native)


@pytest.mark.parametrize(
    "x", [torch.ones(3), torch.ones(2, 4), torch.ones(2, 3, dtype=torch.int64), torch.ones(1, 3)]
)
def test_a_refused_input_is_not_counted(x: torch.Tensor) -> None:
    module = Aggregated(3)
    with pytest.raises((ValueError, TypeError)):
        module(x)
    assert module.num_batches_tracked == 0


def test_one_collective_each_way_and_none_in_evaluation(pool: RankPool) -> None:
    case = Case(batches=(2, 0, 3), channels=3, steps=(Step(), Step(mode="eval")))
    for seen in pool.run(SPEC, case).ranks:
        assert [(entry.op, entry.phase) for entry in seen.ledger] == [
            ("all_gather", "forward 0"),
            ("all_reduce", "backward 0"),
        ]


def test_buffers_are_bit_equal_on_all_ranks(pool: RankPool) -> None:
    seen = pool.run(SPEC, Case(batches=(5, 1, 3), channels=7, rank_offset=8, spatial=((3,),), seed=4)).ranks
    for name in ("running_mean.end", "running_var.end"):
        for other in seen[1:]:
            assert np.array_equal(other.tensors[name].array, seen[0].tensors[name].array)


def test_global_count_one_is_refused_on_every_rank(pool: RankPool) -> None:
    raised = [seen.raised for seen in pool.run(SPEC, Case(batches=(1, 0))).ranks]
    assert [one.type.rpartition(".")[2] for one in raised if one] == ["ValueError", "ValueError"]


@pytest.mark.parametrize("affine", ["both", "none"])
def test_no_rank_waits_where_only_some_inputs_require_a_gradient(pool: RankPool, affine: str) -> None:
    case = Case(
        batches=(2, 0, 1), input_grad=(False, True, False), affine=affine, steps=(Step(recompute=True),)
    )
    assert [seen.ending for seen in pool.run(SPEC, case).ranks] == ["returned"] * 3

"""Tests of torch's SyncBatchNorm over stand-in kernels, and of the file of its known discrepancies."""

from pathlib import Path

import pytest
import torch

from properties.case import Case, Step
from verify.known.entries import extent, load
from verify.ranks.pool import RankPool
from verify.subjects import kernels
from verify.subjects.builtins import BUILTINS
from verify.subjects.torch_syncbn import SyncBatchNorm

KNOWN = Path(kernels.__file__).parent / "known" / "torch.toml"


def test_the_catalogue_names_what_the_ranks_can_load(pool: RankPool) -> None:
    for builtin in BUILTINS.values():
        assert pool.describe(builtin.spec).keywords
    assert BUILTINS["torch"].label_on("cpu") == "torch (CPU stand-in kernels)"
    assert BUILTINS["torch"].label_on("cuda") == "torch"


def test_it_communicates_and_returns_on_the_cpu(pool: RankPool) -> None:
    for seen in pool.run(BUILTINS["torch"].spec, Case(batches=(2, 3), steps=(Step(recompute=True),))).ranks:
        assert seen.ending == "returned"
        assert [entry.op for entry in seen.ledger] == ["all_gather", "all_gather", "all_reduce"]


def test_the_device_check_is_met_only_while_the_forward_runs() -> None:
    name = torch._C._get_privateuse1_backend_name()
    module = SyncBatchNorm(2)
    module(torch.randn(3, 2))
    with pytest.raises(ValueError, match="2D"):
        module(torch.randn(3))
    assert torch._C._get_privateuse1_backend_name() == name != "cpu"


def test_merged_stand_in_statistics_are_those_of_the_whole_batch() -> None:
    x = torch.randn(9, 4, 2, generator=torch.Generator().manual_seed(5))
    parts = [kernels.batch_norm_stats(part, 1e-5) for part in x.split([2, 7])]
    means, invstds = (torch.stack(column) for column in zip(*parts, strict=True))
    running = torch.zeros(4), torch.ones(4)
    counts = torch.tensor([4.0, 14.0])
    mean, invstd = kernels.batch_norm_gather_stats_with_counts(x, means, invstds, *running, 0.5, 1e-5, counts)
    torch.testing.assert_close(mean, x.mean((0, 2)))
    torch.testing.assert_close(invstd, (x.var((0, 2), unbiased=False) + 1e-5).rsqrt())
    torch.testing.assert_close(running[1], 0.5 + 0.5 * x.var((0, 2)))


@pytest.mark.parametrize("inference", [False, True])
def test_an_update_of_the_buffers_leaves_their_version_as_a_cuda_kernel_does(*, inference: bool) -> None:
    x, counts = torch.randn(4, 3), torch.tensor([4.0])
    running = torch.zeros(3), torch.ones(3)
    before = [buffer._version for buffer in running]
    with torch.inference_mode(inference):
        kernels.batch_norm_gather_stats_with_counts(
            x, x.mean(0)[None], x.std(0)[None], *running, 0.5, 1e-5, counts
        )
    assert [buffer._version for buffer in running] == before
    assert (running[0] != 0).all()


def test_the_stand_ins_check_dtypes_as_the_cuda_kernels_do() -> None:
    one = torch.ones(1, 2)
    with pytest.raises(RuntimeError, match="Expected counts to have type Half but got Float"):
        kernels.batch_norm_gather_stats_with_counts(
            one.half(), one, one, None, None, 0.1, 1e-5, torch.ones(1)
        )


def test_counts_that_overflow_float16_give_a_mean_of_zero() -> None:
    x, ones = torch.ones(1, 1, dtype=torch.float16), torch.ones(2, 1)
    counts = torch.tensor([40000.0, 40000.0], dtype=torch.float16)
    buffers = torch.zeros(1, dtype=torch.float16), torch.ones(1, dtype=torch.float16)
    mean, _ = kernels.batch_norm_gather_stats_with_counts(x, ones, ones, *buffers, 0.1, 1e-5, counts)
    assert mean.item() == 0.0


def test_every_known_discrepancy_has_a_case_that_meets_its_own_clauses() -> None:
    entries = load(KNOWN)
    assert {"S1-empty-rank-low-precision", "S8-variance-far-below-eps", "S12-collective-by-local-flag"} <= {
        entry.id for entry in entries
    }


@pytest.mark.parametrize(
    ("entry", "case"),
    [
        ("N9-sums-one-by-one", Case(batches=(5000,), spatial=((2,),))),
        ("N9-sums-one-by-one", Case(batches=(50,), spatial=((2,),), input_layout="sliced")),
        ("N9-sums-one-by-one", Case(batches=(5000, 2), steps=(Step(), Step(mode="eval")))),
        ("N9-backward-sums-one-by-one", Case(batches=(5000,), spatial=((2,),))),
        ("N9-backward-sums-one-by-one", Case(batches=(9,), spatial=((16, 16),))),
        ("N9-backward-sums-one-by-one", Case(batches=(5000, 2))),
        (
            "N4-low-precision-statistics",
            Case(dtype="float16", param_dtype="float16", steps=(Step(), Step(mode="eval"))),
        ),
        (
            "N4-low-precision-evaluation",
            Case(dtype="float16", param_dtype="float16", steps=(Step(mode="eval"),)),
        ),
    ],
)
def test_an_entry_excuses_only_what_its_kernel_does(entry: str, case: Case) -> None:
    (known,) = (one for one in load(KNOWN) if one.id == entry)
    assert extent(known, known.case)
    assert not extent(known, case)

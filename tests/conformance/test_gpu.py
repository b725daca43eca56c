"""On a GPU: the three systems over gloo, torch over NCCL with one rank, and which kernels torch chooses."""

from __future__ import annotations

import itertools

import pytest
import torch

from properties.case import Case
from properties.mechanisms.cuda_kernels import goes_to_cudnn
from verify.config import Config
from verify.engine.engine import Run
from verify.subjects.builtins import BUILTINS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none"),
]


@pytest.mark.parametrize("name", BUILTINS)
def test_a_system_meets_its_expectation_over_gloo(name):
    with Run(Config(seed=1, device="cuda", backend="gloo", cases=60)) as run:
        result = run.campaign(run.subject(name, expectation=BUILTINS[name].expectation))
    assert result.verdict == BUILTINS[name].expectation
    assert (result.accounting.hung, result.accounting.internal) == (0, 0)
    assert [known.id for known in result.known if known.state == "stale"] == []


def test_torch_holds_over_nccl_with_one_rank():
    with Run(Config(seed=1, device="cuda", backend="nccl", cases=60, world_sizes="1")) as run:
        result = run.campaign(run.subject("torch"))
    assert result.failures == ()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_torch_gives_to_cudnn_what_is_expected(dtype):
    # torch's own answer takes no absent parameters and buffers.
    options = itertools.product((2, 3, 4, 5), (True, False), (1e-12, 1e-5, 1.0))
    wrong = []
    for dims, training, eps in options:
        for param in {dtype, "float32" if dtype != "float64" else dtype}:
            case = Case(
                batches=(2,),
                channels=3,
                spatial=((2,) * (dims - 2),),
                dtype=dtype,
                param_dtype=param,
                eps=eps,
            )
            if _chosen(case, training=training) != goes_to_cudnn(case, 0, training=training):
                wrong.append((dims, training, eps, param))
    assert wrong == []


def _chosen(case, *, training):
    """Return whether torch gives a step of `case` to cuDNN, as torch says."""
    one = torch.ones(case.channels, device="cuda", dtype=getattr(torch, case.param_dtype))
    x = torch.ones(case.shape_of(0), device="cuda", dtype=getattr(torch, case.dtype))
    chosen = torch._C._select_batch_norm_backend(
        x,
        *(one, one, one, one),
        training,
        case.eps,
    )
    return "Cudnn" in str(chosen)

"""Tests of the negative control: native batch norm on each rank, which raises nowhere in the domain."""

from collections.abc import Iterator

import pytest
import torch

from properties.case import Case, Step
from verify.ranks.pool import RankPool
from verify.subjects.local import Local

SPEC = "verify.subjects.local:Local"


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool() as ranks:
        yield ranks


@pytest.mark.parametrize(
    "case",
    [
        Case(batches=(1, 0)),
        Case(batches=(1, 3), eps=0.0, dtype="bfloat16", param_dtype="bfloat16"),
        Case(batches=(0, 0), dtype="float16", momentum=None),
        Case(batches=(2, 1), tracking=False, affine="weight"),
        Case(steps=(Step(mode="eval", backward="deferred"), Step())),
    ],
)
def test_it_returns_and_never_communicates(pool: RankPool, case: Case) -> None:
    for seen in pool.run(SPEC, case).ranks:
        assert seen.ending == "returned"
        assert seen.ledger == ()


def test_one_value_is_normalised_to_the_bias_without_a_gradient() -> None:
    module = Local(2)
    module._alone = lambda: False  # type: ignore[method-assign]
    x = torch.tensor([[2.0, -1.0]], requires_grad=True)
    y = module(x)
    y.backward(torch.ones_like(y))
    assert y.tolist() == [[0.0, 0.0]]
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 0.0]]
    torch.testing.assert_close(module.running_mean, torch.tensor([0.2, -0.1]))
    assert module.running_var.tolist() == [1.0, 1.0]


def test_alone_it_refuses_one_value() -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        Local(2)(torch.ones(1, 2))

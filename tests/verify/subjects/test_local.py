"""Tests of the negative control: batch norm on each rank, which raises nowhere in the domain."""

import msgspec
import numpy as np
import pytest
import torch

from properties.case import Case, Step
from verify.ranks.pool import RankPool
from verify.subjects.local import Local

SPEC = "verify.subjects.local:Local"
AGGREGATED = "verify.subjects.aggregated:Aggregated"


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


def test_one_value_is_normalised_to_the_bias_without_a_gradient(pool: RankPool) -> None:
    seen = pool.run(SPEC, Case(batches=(1, 3), channels=2)).ranks[0].tensors
    assert seen["output.0"].array.tolist() == [[0.0, 0.0]]
    assert seen["grad_input.0"].array.tolist() == [[0.0, 0.0]]
    np.testing.assert_allclose(seen["running_var.end"].array, 0.9, rtol=1e-6)


@pytest.mark.parametrize("batches", [(3,), (4, 2)])
def test_a_rank_does_what_a_synchronized_one_does_alone(pool: RankPool, batches: tuple[int, ...]) -> None:
    alone = tuple((rank,) for rank in range(len(batches)))
    steps = (Step(recompute=True), Step(), Step(mode="eval"))
    case = Case(batches=batches, channels=3, dtype="float16", random_parameters=True, steps=steps)
    mine = pool.run(SPEC, case).ranks
    right = pool.run(AGGREGATED, msgspec.structs.replace(case, groups=alone)).ranks
    for one, other in zip(mine, right, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        for name, tensor in one.tensors.items():
            np.testing.assert_array_equal(tensor.array, other.tensors[name].array)


def test_alone_it_refuses_one_value() -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        Local(2)(torch.ones(1, 2))

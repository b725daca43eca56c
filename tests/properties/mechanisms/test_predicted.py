"""Predictions: what cannot be decided of a right subject is not decided of one with a mechanism either."""

from __future__ import annotations

import numpy as np
import pytest

from properties.case import Case, Step
from properties.domain import Contract
from properties.expectation.expect import expect
from properties.mechanisms.closed_list import MECHANISMS
from properties.mechanisms.predicted import predict

ROUNDING = (
    "half-evaluation",
    "half-partial-sums",
    "half-statistics",
    "half-sums",
    "misread-layout",
    "rounded-counts",
    "sequential-backward",
    "sequential-sums",
    "stale-buffers",
)
"""Mechanisms that compute with the same data; the others put a constant in its place."""
CASES = tuple(
    Case(
        batches=(73, 46),
        channels=3,
        spatial=((1, 3),),
        dtype=dtype,
        param_dtype="bfloat16" if dtype == "bfloat16" else "float32",
        values="near_overflow",
        cotangent_layout="permuted",
        steps=(Step(), Step(mode="eval")),
        seed=seed,
    )
    for dtype in ("float32", "bfloat16")
    for seed in (1, 2, 3)
)


def everywhere(case: Case) -> dict[tuple[int, int], np.typing.NDArray[np.bool_]]:
    """Return all channels of all ranks and steps."""
    steps = range(len(case.steps))
    return {(rank, k): np.ones(case.channels, np.bool_) for rank in range(case.world_size) for k in steps}


@pytest.mark.parametrize("mechanism", ROUNDING)
def test_an_overflow_that_is_possible_stays_possible(mechanism: str) -> None:
    assert mechanism in MECHANISMS
    unbounded = 0
    for case in CASES:
        right = expect(case, Contract(), "A")
        changed = predict(case, Contract(), "A", sites={mechanism: everywhere(case)})
        for name, by_rank in right.tensors.items():
            for rank, interval in by_rank.items():
                possible = np.isinf(interval.bound)
                unbounded += int(possible.sum())
                assert np.isinf(changed.tensors[name][rank].bound)[possible].all(), (case.seed, name)
    assert unbounded > 0


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_overflows_on_the_way_warns_nobody(mechanism: str) -> None:
    case = Case(
        batches=(3, 2),
        dtype="float64",
        param_dtype="float64",
        eps=0.0,
        values="near_overflow",
        steps=(Step(), Step(mode="eval")),
        seed=1,
    )
    predicted = predict(case, Contract(), "A", sites={mechanism: everywhere(case)})
    assert predicted.tensors["output.0"]


def test_on_cuda_buffers_are_read_late_by_the_ranks_whose_kernel_does_and_sums_are_rounded_on_all() -> None:
    case = Case(
        batches=(2, 2),
        channels=2,
        spatial=((1,), (2,)),
        dtype="float16",
        affine="weight",
        cotangent_layout="permuted",
        random_parameters=True,
        steps=(Step(mode="eval", backward="deferred"), Step()),
        seed=1,
    )
    sites = {name: everywhere(case) for name in ("stale-buffers", "half-partial-sums")}
    right = expect(case, Contract(), "A", device="cuda")
    changed = predict(case, Contract(), "A", device="cuda", sites=sites)
    late = [
        not np.array_equal(
            right.tensors["grad_input.0"][rank].value, changed.tensors["grad_input.0"][rank].value
        )
        for rank in (0, 1)
    ]
    assert late == [False, True]
    for rank in (0, 1):
        widest = changed.tensors["grad_weight.0"][rank].bound
        assert (widest > 2 * right.tensors["grad_weight.0"][rank].bound).all()


def test_a_backward_that_was_run_at_grade_b_is_not_charged_its_depth_twice() -> None:
    """One position a sample: the sums of both directions are one by one, and grade B has n for each."""
    case = Case(batches=(5000,), seed=3)
    both = {name: everywhere(case) for name in ("sequential-sums", "sequential-backward")}
    found = predict(case, Contract(), "A", sites=both)
    right = expect(case, Contract(), "B")
    for name in ("grad_bias.0", "grad_weight.0", "grad_input.0"):
        np.testing.assert_array_equal(found.tensors[name][0].bound, right.tensors[name][0].bound)


def test_the_depth_of_the_backward_is_its_own_and_leaves_the_forward_alone() -> None:
    case = Case(batches=(5000,), seed=3, steps=(Step(mode="eval"),))
    found = predict(case, Contract(), "A", sites={"sequential-backward": everywhere(case)})
    a, b = (expect(case, Contract(), grade) for grade in ("A", "B"))
    ratio = found.tensors["grad_bias.0"][0].bound / b.tensors["grad_bias.0"][0].bound
    assert (found.tensors["grad_bias.0"][0].bound > 10 * a.tensors["grad_bias.0"][0].bound).all()
    assert ((ratio > 0.99) & (ratio < 1.01)).all()
    np.testing.assert_array_equal(found.tensors["output.0"][0].bound, a.tensors["output.0"][0].bound)
    np.testing.assert_array_equal(found.tensors["grad_input.0"][0].bound, a.tensors["grad_input.0"][0].bound)


@pytest.mark.parametrize(
    ("later", "refusing"),
    [
        ((0, 0, 1), {2}),  # the rank that evaluates its single value without buffers
        ((1, 0, 0), {0}),
        ((2, 0, 0), set()),
    ],
)
def test_who_accepts_a_single_value_in_training_refuses_it_where_it_evaluates_alone(later, refusing):
    steps = (Step(), Step(mode="eval", batches=later))
    case = Case(batches=(1, 0, 0), tracking=False, steps=steps)
    sites = {"accepted-single-value": {(rank, 0): np.ones(1, np.bool_) for rank in range(3)}}
    assert set(predict(case, Contract(), "A", sites=sites).refusals) == refusing

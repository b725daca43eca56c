"""The gradients of a rank without values: zero, unless they are empty sums times what is not finite."""

from __future__ import annotations

import numpy as np
import pytest

from properties.case import Case, Step
from properties.domain import Contract, Grade
from properties.expectation.expect import expect

EVALUATED = (Step(), Step(mode="eval"))


@pytest.mark.parametrize(
    ("case", "step", "grade", "undecided"),
    [
        (Case(batches=(4, 0), seed=1), 0, "A", False),
        (Case(batches=(2, 0), seed=1, values="near_overflow"), 0, "A", True),
        (Case(batches=(2, 0), seed=1, values="near_overflow"), 0, "C", True),
        (Case(batches=(3, 0), eps=0.0, values="constant"), 0, "A", True),
        (Case(batches=(3, 0), values="constant"), 0, "A", False),
        (Case(batches=(2, 0), seed=1, values="near_overflow", steps=EVALUATED), 1, "A", True),
        (Case(batches=(2, 0), seed=1, steps=EVALUATED), 1, "A", False),
    ],
)
def test_an_empty_rank(case: Case, step: int, grade: Grade, undecided: bool) -> None:
    tensors = expect(case, Contract(), grade).tensors
    weight, bias = tensors[f"grad_weight.{step}"][1], tensors[f"grad_bias.{step}"][1]
    assert not weight.value.any()
    np.testing.assert_array_equal(weight.bound, np.inf if undecided else 0.0)
    np.testing.assert_array_equal(bias.bound, 0.0)

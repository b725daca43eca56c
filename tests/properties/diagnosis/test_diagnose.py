"""Diagnosis: a subject that does what a cause predicts is told so; one that does something else is not."""

from __future__ import annotations

import numpy as np
import pytest

from properties.case import Case, Step
from properties.diagnosis.causes import ALL, BACKWARD, BY_ID, CONSISTENT, FORWARD
from properties.diagnosis.diagnose import classes_of, diagnose, words_of
from properties.diagnosis.prediction import predict
from properties.diagnosis.symptoms import SYMPTOMS
from properties.diagnosis.variant import RIGHT
from properties.domain import Contract
from properties.expectation.expect import expect
from tests.properties.diagnosis.simulated import observed

CASES = (
    Case(batches=(2, 5, 0), rank_offset=4, random_parameters=True, channels=3, eps=0.1, seed=1),
    Case(
        batches=(3, 4),
        channels=8,
        rank_offset=1,
        random_parameters=True,
        momentum=0.0,
        steps=(Step(), Step(mode="eval"), Step(accumulate=True)),
        seed=2,
    ),
    Case(
        batches=(1, 2, 3, 4),
        groups=((0, 3), (1, 2)),
        rank_offset=4,
        momentum=None,
        steps=(Step(), Step()),
        seed=3,
    ),
    Case(
        batches=(2, 2),
        spatial=((2, 3),),
        channels=5,
        input_layout="channels_last",
        cotangent_layout="permuted",
        random_parameters=True,
        rank_offset=1,
        eps=1.0,
        seed=4,
    ),
    Case(batches=(2, 3), strided_buffers=True, steps=(Step(recompute=True),), seed=5),
    Case(batches=(0, 0), seed=6),
    Case(batches=(257, 263), dtype="bfloat16", param_dtype="bfloat16", rank_offset=4, seed=7),
    Case(batches=(2049, 2055), dtype="float16", param_dtype="float16", rank_offset=4, seed=7),
    Case(batches=(2, 3), channels=130, rank_offset=4, seed=8),
    Case(batches=(2, 3), spatial=((4,), (1,)), rank_offset=4, steps=(Step(mode="eval"), Step()), seed=9),
    Case(batches=(1, 2, 3, 2), momentum=1.0, steps=(Step(), Step()), rank_offset=1, seed=10),
    Case(batches=(2, 2), dtype="bfloat16", eps=0.1, values="tiny_spread", seed=11),
)
SKIPPED = ("low-precision-sums", "one-pass-variance", "rounded-steps")
"""Causes that only widen a bound: what they predict is right, too."""


def named(variant, **more):
    seen = [observed(case, variant, **more) for case in CASES]
    failing = [one for one in seen if one.violated]
    return diagnose(failing[:3], Contract(), "A", seconds=60.0) if failing else None


@pytest.mark.parametrize(
    "cause",
    [  # An eighth of them everyday: each compiles the variants of all causes for a case or more.
        pytest.param(cause, id=cause.id, marks=pytest.mark.costly if number % 8 else ())
        for number, cause in enumerate(cause for cause in ALL if cause.id not in SKIPPED)
    ],
)
def test_a_subject_that_does_what_a_cause_predicts_is_told_so(cause):
    found = named(cause.variant(RIGHT))
    assert found is not None
    names = {name for told in found.causes.values() for name in told}
    assert cause.id in names or any(set(classes_of(name)) & set(cause.classes) for name in names)


def test_a_wrong_forward_with_the_gradient_that_belongs_to_it_is_told_by_the_forward():
    base = BY_ID["equal-weights"].variant(RIGHT)
    found = named(CONSISTENT.variant(base))
    assert found.of("forward")[0] == "equal-weights"
    assert found.of("grad_input")[0] == "equal-weights"


def test_gradients_that_follow_from_the_buffers_are_told_by_the_buffers_alone():
    evaluated = Case(
        batches=(3, 4),
        channels=2,
        rank_offset=1,
        random_parameters=True,
        steps=(Step(), Step(mode="eval")),
        seed=12,
    )
    seen = observed(evaluated, BY_ID["biased-running-var"].variant(RIGHT))
    assert {"forward", "running_var", "grad_input", "grad_weight"} <= set(seen.violated)
    found = diagnose([seen], Contract(), "A", seconds=60.0)
    told = set(found.of("running_var"))
    assert "biased-running-var" in told
    for name in ("forward", "grad_input", "grad_weight"):
        assert set(found.of(name)) == told, "what changes nothing is no cause"


def test_an_error_that_no_cause_predicts_resembles_none():
    found = named(
        RIGHT, change=lambda name, array: array * (1 + 3e-4) if name.startswith("output") else array
    )
    assert found.of("forward") == ()
    assert found.convention == {}


@pytest.mark.parametrize(
    ("cause", "convention"),
    [
        ("biased-running-var", {"running_var": "biased"}),
        ("one-update-when-recomputed", {"recompute_updates": "once"}),
    ],
)
def test_a_convention_is_recognised_as_such(cause, convention):
    found = named(BY_ID[cause].variant(RIGHT))
    assert found.convention == convention


def test_of_a_single_update_when_recomputed_the_right_variant_and_the_reference_agree():
    case, once = Case(steps=(Step(recompute=True),), seed=4), Contract(recompute_updates="once")
    predicted, right = (predict(case, once, "A", variant=RIGHT), expect(case, once, "A"))
    assert right.tracked["num_batches_tracked.end"][0] == 1
    assert predicted.tracked == right.tracked
    np.testing.assert_allclose(
        predicted.tensors["running_var.end"][0].value, right.tensors["running_var.end"][0].value
    )


def test_names_are_unique_and_described():
    ids = [cause.id for cause in ALL] + [symptom.id for symptom in SYMPTOMS]
    assert len(set(ids)) == len(ids)
    assert all(words_of(name) and classes_of(name) for name in ids)
    assert classes_of("no such cause") == ()
    assert len(FORWARD) + len(BACKWARD) > 50

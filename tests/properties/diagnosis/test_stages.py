"""Stages: what is wrong first is told of simulated subjects, whatever follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from properties.case import Case, Step
from properties.diagnosis.causes import BY_ID
from properties.diagnosis.stages import WORDS, first_wrong
from properties.diagnosis.variant import RIGHT
from properties.domain import Contract
from properties.expectation.expect import expect
from tests.properties.diagnosis.simulated import observed

ALONE = Case(batches=(7,), channels=3, random_parameters=True, steps=(Step(), Step(mode="eval")), seed=3)
CASES = (
    ALONE,
    Case(batches=(2,), seed=4),
    Case(batches=(5, 6, 4), channels=2, random_parameters=True, rank_offset=1, seed=5),
    Case(
        batches=(3, 4),
        spatial=((3, 2),),
        channels=5,
        rank_offset=1,
        random_parameters=True,
        input_layout="channels_last",
        steps=(Step(), Step()),
        seed=6,
    ),
)


def told(cause, *, cases=CASES, **more):
    variant = BY_ID[cause].variant(RIGHT) if cause else RIGHT
    seen = [one for case in cases if (one := observed(case, variant, **more)).violated]
    return first_wrong(seen, [expect(one.case, Contract(), "A") for one in seen])


@pytest.mark.parametrize(
    ("cause", "stage"),
    [
        ("zero-statistics", "statistics"),
        ("equal-weights", "merge"),
        ("local-statistics", "merge"),
        ("no-between-variance", "merge"),
        ("no-weight", "normalise"),
        ("unbiased-normalisation", "statistics"),
        ("eps-outside-root", "normalise"),
        ("swapped-affine-in-evaluation", "normalise"),
        ("input-as-contiguous", "normalise"),
        ("running-in-training", "normalise"),
        ("biased-running-var", "buffers"),
        ("no-mean-term", "backward-elements"),
        ("no-variance-term", "backward-elements"),
        ("gradient-times-ranks", "backward-elements"),
        ("local-sums", "backward-sums"),
        ("swapped-sums", "backward-sums"),
        ("undivided", "backward-sums"),
        ("mean-of-means", "backward-sums"),
        ("affine-gradients-summed", "backward-sums"),
        ("weight-gradient-summed", "backward-sums"),
    ],
)
def test_the_stage_of_a_cause_is_told_without_it(cause, stage):
    assert told(cause) == stage


def test_an_output_that_is_no_line_of_the_input_is_one_of_the_normalisation():
    def change(name, array):
        array = array.copy()
        if name.startswith("output"):
            array.reshape(-1)[-1] += 1.0
        return array

    assert told("", change=change) == "normalise"


def test_numbers_beside_overwritten_tensors_tell_nothing():
    seen = observed(ALONE, BY_ID["no-weight"].variant(RIGHT))
    overwritten = [type(seen)(seen.case, seen.observation, (*seen.violated, "purity"))]
    assert first_wrong(overwritten, [expect(ALONE, Contract(), "A")]) == "other"


@pytest.mark.parametrize(
    ("violated", "stage"),
    [
        (("ending",), "ending"),
        (("refusal", "dtype_and_layout"), "ending"),
        (("conversion",), "other"),
        ((), None),
    ],
)
def test_without_wrong_numbers_it_is_told_by_the_property(violated, stage):
    right = observed(ALONE, RIGHT)
    seen = [type(right)(right.case, right.observation, violated)]
    assert first_wrong(seen, [expect(ALONE, Contract(), "A")]) == stage


def test_two_values_a_channel_tell_no_stage_where_another_trial_does():
    """Every output is on a line of two values; a third tells that the weight is wrong, not the statistics."""
    bent = Case(batches=(2,), tracking=False, random_parameters=True, seed=4)
    assert told("no-weight", cases=(bent, CASES[2])) == "normalise"


def test_every_stage_has_words():
    assert all(words == words.strip() for words in WORDS.values())
    assert np.unique(list(WORDS.values())).size == len(WORDS)

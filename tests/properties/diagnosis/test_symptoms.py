"""Symptoms: what a minimal case still needs, unless the subject's domain has nothing else."""

from __future__ import annotations

import msgspec
import pytest

from properties.case import Case, Step
from properties.diagnosis.diagnose import diagnose
from properties.diagnosis.plain_batchnorm import Modes
from properties.diagnosis.symptoms import SYMPTOMS, symptoms
from properties.domain import Contract, Domain
from properties.generation.membership import objections
from properties.observation import Observation
from tests.properties.diagnosis.simulated import Seen, slipped

NOBODY = Observation(ranks=())
PLAIN = Case(batches=(2,))


def told(case, domain, *, name="forward"):
    return symptoms([Seen(case, NOBODY, (name,), minimal=True)], domain).get(name, ())


@pytest.mark.parametrize(
    ("changes", "symptom", "forcing"),
    [
        ({"tracking": False}, "no-buffers", {"tracking": (False,)}),
        ({"affine": "none"}, "absent-or-frozen-parameters", {"affine": ("none",)}),
        ({"eps": 0.0}, "eps-of-zero", {"eps": ("zero",)}),
        ({"values": "tiny_spread"}, "variance-below-eps", {"values": ("tiny_spread",)}),
        (
            {"batches": (2, 0), "dtype": "float16", "param_dtype": "float32"},
            "empty-rank-in-low-precision",
            {"dtypes": ("float16",)},
        ),
    ],
)
def test_what_the_domain_forces_on_every_case_is_no_symptom(changes, symptom, forcing):
    case = msgspec.structs.replace(PLAIN, **changes)
    everything = msgspec.structs.replace(Domain(), eps=("positive", "zero"))
    narrow = msgspec.structs.replace(everything, **forcing)
    assert not objections(narrow, case)
    assert symptom in told(case, everything)
    assert symptom not in told(case, narrow)


def test_an_empty_rank_is_told_where_low_precision_is_forced():
    half = Case(batches=(2, 0), dtype="float16", param_dtype="float32")
    assert "empty-rank" in told(half, msgspec.structs.replace(Domain(), dtypes=("float16",)))


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda symptom: symptom.id)
def test_a_case_without_it_is_a_case(symptom):
    fields = {one.name for one in msgspec.structs.fields(Case)}
    assert set(symptom.without) <= fields
    assert not symptom.forced(PLAIN, Domain())
    assert msgspec.structs.replace(PLAIN, **symptom.without)


def test_what_a_further_failing_trial_does_without_is_no_symptom():
    cases = Case(batches=(2,), steps=(Step(), Step())), PLAIN
    twice, once = (
        Seen(case, slipped(case, Modes()).observation, ("ending",), minimal=case is not PLAIN)
        for case in cases
    )
    assert diagnose([twice], Contract(), "A").of("ending") == ("repeated-forward",)
    assert diagnose([twice], Contract(), "A", further=[once]).of("ending") == ()


def test_what_a_single_trial_tells_no_further_one_takes_back():
    """A group of one value that is accepted, and another case that is refused for something else."""
    single = Seen(Case(batches=(1,)), NOBODY, ("refusal",), minimal=True)
    assert symptoms([single], Domain(), [Seen(PLAIN, NOBODY, ("refusal",))])["refusal"] == (
        "single-value-accepted",
    )


def test_an_input_without_values_is_told_where_neither_its_rank_nor_its_group_always_is():
    nobody = Seen(Case(batches=(0,)), NOBODY, ("ending",), minimal=True)
    other = Seen(Case(batches=(2, 0)), NOBODY, ("ending",))
    assert symptoms([nobody], Domain())["ending"] == ("empty-batch-fails",)
    assert symptoms([nobody, other], Domain())["ending"] == ("empty-input-fails",)

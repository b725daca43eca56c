"""One unit judged: what of its campaign is kept; over fake ranks, reference and properties."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import ClassVar

import msgspec
import pytest

from properties.verdict import Outcome as Said
from properties.verdict import Verdict
from tests.verify.fakes import FakeRanks, examiner, judge_by, returned
from tests.verify.measure.power.samples import RIGHT, card
from verify.measure.power.fault_campaign import Watch, judge_fault, judge_right
from verify.measure.power.outcome import Outcome
from verify.measure.power.work_units import Effort, FaultUnit, RightUnit

EFFORT = Effort(cases=60, seconds=None, tries=300, tries_total=600)
RULES = {
    "forward": lambda case: len(case.batches) > 1 and case.channels > 3,
    "grad_input": lambda case: len(case.batches) > 1 and case.channels > 3,
    "purity": lambda case: False,
}


def fault(caught_by=("grad_input",), **more):
    return FaultUnit(card=card(caught_by=caught_by), seed=1, effort=msgspec.structs.replace(EFFORT, **more))


def test_a_fault_is_caught_with_its_first_case_and_its_smallest():
    ranks = FakeRanks()
    outcome = judge_fault(fault(), examiner(RULES, ranks=ranks))
    first = next(i for i, case in enumerate(ranks.cases, 1) if RULES["forward"](case))
    assert outcome.caught
    assert outcome.properties == ("forward", "grad_input")
    assert outcome.lacking == ()
    assert outcome.cases == first
    assert outcome.drawn == first + 1  # the next was in flight
    assert (outcome.smallest.ranks, outcome.smallest.channels, outcome.smallest.values) == (2, 4, 2)
    assert json.loads(outcome.smallest.case)["channels"] == 4
    assert outcome.smallest.size == len(outcome.smallest.case)
    assert not outcome.smallest.small
    assert 0 < outcome.minimising_seconds <= outcome.total_seconds
    assert msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome) == outcome


def test_a_property_that_must_catch_the_fault_and_does_not_is_told():
    outcome = judge_fault(fault(("forward", "purity")), examiner(RULES))
    assert outcome.caught
    assert outcome.lacking == ("purity",)
    assert outcome.drawn == 60


def test_a_fault_that_nothing_shows_is_missed():
    outcome = judge_fault(fault(), examiner({"grad_input": lambda case: False}))
    assert not outcome.caught
    assert outcome.lacking == ("grad_input",)
    assert (outcome.cases, outcome.smallest, outcome.drawn) == (0, None, 60)


def test_seconds_are_counted_from_the_start_of_the_drawing_to_the_first_failure():
    now = [100.0]

    def behave(case):
        now[0] += 1.0
        return returned(case)

    outcome = judge_fault(fault(), examiner(RULES, ranks=FakeRanks(behave)), clock=lambda: now[0])
    assert outcome.seconds == outcome.cases
    assert outcome.minimising_seconds == outcome.total_seconds - outcome.drawn


def test_a_watch_without_a_failure_found_nothing():
    assert Watch().found is None


class Diagnoses:
    """Names two causes whatever it sees."""

    CLASSES: ClassVar = {"one": (3, 1), "two": (1,)}

    def diagnose(self, evidence, contract, grade, *, device, domain, further=()):
        return SimpleNamespace(of=lambda property_id: tuple(self.CLASSES), convention={}, forms={}, stages={})

    def words_of(self, name):
        return f"has the cause {name}"

    def classes_of(self, name):
        return self.CLASSES[name]


def test_causes_are_those_of_the_failures_and_classes_those_of_the_causes():
    outcome = judge_fault(fault(), examiner(RULES, diagnoses=Diagnoses()))
    assert outcome.diagnosed
    assert outcome.causes == ("one", "two")
    assert outcome.classes == (1, 3)


def test_no_causes_are_named_where_the_effort_leaves_the_diagnosis_out():
    outcome = judge_fault(fault(diagnose=False), examiner(RULES, diagnoses=Diagnoses()))
    assert not outcome.diagnosed
    assert (outcome.causes, outcome.classes) == ((), ())


def test_a_right_subject_that_holds_is_counted_by_dtype_and_property():
    rules = {"forward": lambda case: False, "purity": lambda case: False}
    outcome = judge_right(RightUnit(card=RIGHT[1], seed=1, cases=40), examiner(rules))
    assert (outcome.spec, outcome.grade) == ("right:B", "B")
    assert (outcome.cases, outcome.accused, outcome.accusations) == (40, 0, ())
    assert [(cell.property, cell.pairs, cell.elements, cell.max_ratio) for cell in outcome.cells] == [
        ("forward", 40, 160, 0.5),
        ("purity", 40, 160, 0.5),
    ]


def test_a_right_subject_that_is_accused_is_told_with_its_case():
    seen = []
    outcome = judge_right(
        RightUnit(card=RIGHT[0], seed=1, cases=40),
        examiner({"forward": lambda case: case.channels > 8}),
        keep=seen.append,
    )
    assert 1 <= outcome.accused < 40
    assert outcome.accused <= sum(trial.case.channels > 8 for trial in seen)
    assert [accusation.property for accusation in outcome.accusations] == ["forward"]
    assert json.loads(outcome.accusations[0].case)["channels"] == 9
    assert "VIOLATED forward" in outcome.accusations[0].text
    assert any(cell.violated for cell in outcome.cells)


@pytest.mark.parametrize("ratio", [math.inf, math.nan])
def test_a_ratio_that_is_not_finite_survives_the_way_to_the_parent(ratio):
    def judge(case, *rest, only):
        (verdict,) = judge_by({"forward": lambda case: False})(case, *rest, only=only)
        return (Verdict(property="forward", outcome=Said.HOLDS, elements=verdict.elements, max_ratio=ratio),)

    outcome = judge_right(RightUnit(card=RIGHT[0], seed=1, cases=3), examiner({}, judge=judge))
    back = msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome)
    assert back == outcome
    assert float(back.cells[0].max_ratio) == math.inf

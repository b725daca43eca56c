"""Naming: what a report names is compared with what is true of a subject; over fake ranks and reference."""

from __future__ import annotations

import io
from argparse import Namespace
from types import SimpleNamespace

import msgspec
import pytest

from properties.diagnosis.conventions import CONVENTION_CLASSES, CONVENTIONS
from tests.verify.fakes import examiner
from verify import errors
from verify.errors import UsageError
from verify.faults.apart_cards import ApartCard
from verify.measure.diagnosis.naming import Naming, diagnosis_command, judge_apart, named, tell
from verify.measure.diagnosis.naming_page import line, page, totals
from verify.measure.power.outcome import Broken, Done, NamedOutcome, Outcome
from verify.measure.power.work_units import ApartUnit, Effort

EFFORT = Effort(cases=40, seconds=None, tries=200, tries_total=400)
RULES = {"forward": lambda case: case.channels > 3, "purity": lambda case: False}


def card(name="apart-one", **more):
    fields = {"subject": "One", "stage": "merge", "number": 1, "wrong": "Is wrong | so.", "module": "ones"}
    return ApartCard(id=name, **{**fields, **more})


def outcome(**more):
    fields = {"properties": ("forward",), "stage": "merge", "causes": ("equal-weights",), "classes": (1,)}
    return NamedOutcome(subject="apart-one", seed=1, **{**fields, **more})


class Diagnoses:
    """Names a stage and two causes, and with `convention` that, whatever it sees."""

    def __init__(self, **convention):
        self.convention = convention

    def diagnose(self, evidence, contract, grade, *, device, domain, further=()):
        causes = ("equal-weights", "no-weight")
        stages = {"forward": "merge"}
        return SimpleNamespace(of=lambda name: causes, convention=self.convention, forms={}, stages=stages)

    def words_of(self, name):
        return f"has the cause {name}"

    def stage_words(self, stage):
        return f"the {stage}"


def test_what_is_told_first_is_kept():
    unit = ApartUnit(card=card(), seed=1, effort=EFFORT)
    found = judge_apart(unit, examiner(RULES, diagnoses=Diagnoses()))
    assert (found.properties, found.stage, found.classes) == (("forward",), "merge", (1,))
    assert found.causes == ("equal-weights", "no-weight")
    assert found.drawn
    assert not found.convention
    assert '"channels":4' in found.case
    assert msgspec.json.decode(msgspec.json.encode(found), type=Outcome) == found


def test_a_convention_counts_by_the_classes_of_its_keys():
    unit = ApartUnit(card=card(), seed=1, effort=EFFORT)
    found = judge_apart(unit, examiner(RULES, diagnoses=Diagnoses(running_var="biased")))
    assert found.convention
    assert found.classes == (7,)
    assert all(key in CONVENTION_CLASSES for changes in CONVENTIONS for key in changes)


def test_a_subject_that_is_not_caught_names_nothing():
    unit = ApartUnit(card=card(), seed=1, effort=EFFORT)
    found = judge_apart(unit, examiner({"forward": lambda case: False}, diagnoses=Diagnoses()))
    assert (found.properties, found.stage, found.causes, found.case) == ((), "", (), "")
    assert "NOT CAUGHT" in line(named(card(), found))


@pytest.mark.parametrize(
    ("true", "given", "stage", "cause"),
    [
        ({}, {}, True, "right"),
        ({"number": 0, "accept": (9, 1)}, {}, True, "right"),
        ({"stage": "statistics"}, {}, False, "right"),
        ({"number": 2}, {}, True, "wrong"),
        ({}, {"causes": (), "classes": ()}, True, "none"),
        ({"number": 7}, {"causes": (), "classes": (7,), "convention": True}, True, "right"),
        ({"number": 8}, {"causes": (), "classes": (7,), "convention": True}, True, "wrong"),
    ],
)
def test_a_stage_is_right_by_its_name_and_a_cause_by_its_class(true, given, stage, cause):
    found = named(card(**true), outcome(**given))
    assert (found.stage, found.cause) == (stage, cause)


def naming(*given):
    cards = tuple(card(f"apart-{i}") for i in range(len(given)))
    return Naming(cards, [named(one, outcome(**more)) for one, more in zip(cards, given, strict=True)])


RIGHT, STAGELESS = {}, {"stage": "buffers"}
WRONG, MISSED = {"classes": (2,)}, {"properties": ()}


@pytest.mark.parametrize(
    ("found", "met"),
    [
        ([RIGHT] * 34, True),
        ([RIGHT] * 9 + [STAGELESS], True),
        ([RIGHT] * 8 + [STAGELESS] * 2, False),
        ([RIGHT] * 33 + [WRONG], True),
        ([RIGHT] * 32 + [WRONG], False),
        ([RIGHT] * 20 + [MISSED], False),
    ],
)
def test_targets(found, met):
    assert naming(*found).met is met
    assert naming(*found).exit_code == (errors.OK if met else errors.NOT_MET)


def test_only_the_newest_set_must_meet_the_targets_and_each_is_told():
    cards = (card("apart-old"), card("apart-new", set=2))
    for old, new, met in ((STAGELESS, RIGHT, True), (RIGHT, STAGELESS, False), (MISSED, RIGHT, False)):
        found = [named(one, outcome(**more)) for one, more in zip(cards, (old, new), strict=True)]
        assert Naming(cards, found).met is met
    told = Naming(cards, found).totals()
    assert told[0] == "set 1: 1 of 1 subjects judged, 0 caught"
    assert told[3] == "set 2: 1 of 1 subjects judged, 1 caught"


def test_a_subject_that_was_not_judged_is_none_that_was():
    found = naming(RIGHT, RIGHT)
    found.found.pop()
    assert found.exit_code == errors.NOT_MET
    assert naming({"internal": 1}).exit_code == errors.INTERNAL


def test_each_is_told_as_it_is_done_and_what_broke_is_told_too():
    one, other = card("apart-one"), card("apart-other")
    found, stream = Naming((one, other)), io.StringIO()
    done = [
        Done(unit=ApartUnit(card=one, seed=1), outcome=outcome()),
        Done(unit=ApartUnit(card=other, seed=1), outcome=Broken(reason="no memory")),
    ]
    tell(found, done, stream)
    assert stream.getvalue().splitlines()[0].split() == ["apart-one", "merge", "right", "equal-weights"]
    assert "apart-other, seed 1: our own machinery failed: no memory" in stream.getvalue()
    assert found.exit_code == errors.INTERNAL


def test_the_page_has_a_row_for_each_and_marks_what_is_wrong():
    found = naming(RIGHT, STAGELESS, WRONG, MISSED).found
    sentences = totals(found, 1, of=4, stage=0.9, wrong=0.03)
    text = page(found, command="a command", environment="versions", totals=sentences)
    assert text.count("| `apart-") == 4
    assert "Is wrong \\| so." in text
    assert "**buffers**" in text
    assert "**wrong**" in text
    assert "named rightly for 3 (75.0%; target 90%)" in text
    assert "not caught" in text


def test_a_name_that_there_is_not_is_a_wrong_use():
    message = "^Expected ids or modules of subjects apart, but got no-such.$"
    with pytest.raises(UsageError, match=message):
        diagnosis_command(Namespace(names=["no-such"]))

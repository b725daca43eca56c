"""The subjects apart: cards are whole, what they are made from holds; with `--costly`, each is caught."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from properties.diagnosis.stages import WORDS, Stage
from verify.faults.apart_cards import apart_cards, apart_right
from verify.faults.cards import CardError, RightCard, cards
from verify.faults.classes import CLASSES
from verify.measure.power.pool_worker import judge
from verify.measure.power.work_units import ApartUnit, Effort, RightUnit

EFFORT = Effort(cases=200, seconds=None, tries=30, tries_total=60)
RIGHT_CASES = 20


def test_cards_name_stages_that_there_are_and_ids_of_their_own():
    assert set(get_args(Stage)) == set(WORDS)
    assert {card.stage for card in apart_cards()} <= set(WORDS)
    assert not {card.id for card in apart_cards()} & {card.id for card in cards()}
    assert [sum(card.set == number for card in apart_cards()) for number in (1, 2, 3)] == [60, 60, 60]


@pytest.mark.parametrize(("number", "accept"), [(len(CLASSES) + 1, ()), (-1, ()), (1, (99,))])
def test_a_class_that_there_is_not_is_refused(number, accept):
    with pytest.raises(CardError, match=f"Expected classes from 0 to {len(CLASSES)}"):
        msgspec.structs.replace(apart_cards()[0], number=number, accept=accept)


@pytest.mark.costly  # a whole campaign each, with its report
@pytest.mark.parametrize("card", apart_cards(), ids=lambda card: card.id)
def test_a_subject_apart_is_caught(real_run, card):
    assert judge(ApartUnit(card=card, seed=1, effort=EFFORT), real_run).properties


@pytest.mark.parametrize("right", apart_right()[::5], ids=lambda right: right.subject)
def test_what_they_are_made_from_is_not_accused(real_run, right):
    card = RightCard(spec=right.spec, differs="", grade=right.grade)
    outcome = judge(RightUnit(card=card, seed=3, cases=RIGHT_CASES), real_run)
    assert (outcome.accused, outcome.internal) == (0, 0)

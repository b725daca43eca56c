"""Cards and subjects of the fault catalogue belong together."""

from __future__ import annotations

import importlib

import pytest

from properties.judge.catalogue import PROPERTIES
from verify.faults.cards import Card, CardError, cards, right_cards


@pytest.mark.parametrize("card", cards(), ids=lambda card: card.id)
def test_a_card_names_an_existing_subject_and_existing_properties(card):
    module = importlib.import_module(f"verify.faults.{card.family}")
    assert callable(getattr(module, card.subject))
    assert set(card.caught_by) <= PROPERTIES.keys()


def test_right_subjects_are_listed_with_a_grade():
    assert {card.grade for card in right_cards()} == {"A", "B", "C"}


def test_a_card_without_a_catching_property_is_refused():
    with pytest.raises(CardError, match="caught_by"):
        Card(
            id="x", subject="X", number=1, wrong="", effect="", trigger="", source="", caught_by=(), family=""
        )

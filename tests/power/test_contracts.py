"""Each key of the contract has right subjects that need it, which hold under it, and one that breaks it."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest

from properties.case import decode
from properties.domain import Contract
from verify.config import Budget, Config, setting_texts
from verify.engine.floor import Floor
from verify.faults.cards import CardError, ContractCard, contract_cards

RIGHT = [card for card in contract_cards() if not card.breaks]
BREACHES = [card for card in contract_cards() if card.breaks]
EVERYDAY = list({card.key: card for card in RIGHT if "accumulate" not in card.key}.values())
"""One of each setting; what accumulates in another dtype has programs of its own, which compile for long."""
NAMES = {True: "yes", False: "no"}
FEW = Budget(cases=10, seconds=None)


def settings_of():
    """Return every setting of a contract that is not the default, `key=value`."""
    found = set()
    for name, hint in get_type_hints(Contract).items():
        values = (True, False) if hint is bool else get_args(hint)
        others = [value for value in values if value != getattr(Contract(), name)]
        found |= {
            f"{name}={NAMES.get(value, value)}" for value in others if name in Contract.__struct_fields__
        }
    return found


def violated(run, card, contract):
    """Return what the card's case violates under a contract."""
    subject = run.subject(card.spec, config=Config(contract=setting_texts(contract)))
    return set(run.examiner(subject).examine(decode(card.case)).violated)


def test_every_setting_has_two_right_subjects_and_one_that_breaks_it():
    for key in settings_of():
        assert sum(card.key == key for card in RIGHT) >= 2, key
        assert any(card.key == key for card in BREACHES), key
    assert {card.key for card in contract_cards()} == settings_of()


@pytest.mark.parametrize("card", contract_cards(), ids=lambda card: card.subject)
def test_a_subject_declares_the_contract_of_its_card(real_run, card):
    name, _, value = card.key.partition("=")
    contract = real_run.subject(card.spec).promise.contract
    assert {
        key for key in Contract.__struct_fields__ if getattr(contract, key) != getattr(Contract(), key)
    } == {name}
    assert NAMES.get(getattr(contract, name), getattr(contract, name)) == value


@pytest.mark.parametrize(
    "card",
    [
        pytest.param(card, id=card.subject, marks=pytest.mark.costly if "accumulate" in card.key else ())
        for card in RIGHT
    ],
)
def test_a_right_subject_holds_under_its_contract_and_is_reported_under_the_default_one(real_run, card):
    name = card.key.partition("=")[0]
    value = getattr(Contract(), name)
    assert violated(real_run, card, {}) == set()
    found = violated(real_run, card, {name: NAMES.get(value, value)})
    assert found >= set(card.reported_by)
    assert bool(found) is bool(card.reported_by)


@pytest.mark.parametrize("card", BREACHES, ids=lambda card: card.subject)
def test_a_subject_that_breaks_its_contract_is_reported_under_it(real_run, card):
    assert violated(real_run, card, {}) >= set(card.reported_by)


@pytest.mark.parametrize(
    "card",
    [
        pytest.param(card, id=card.subject, marks=() if card in EVERYDAY else pytest.mark.costly)
        for card in RIGHT
    ],
)
def test_drawn_cases_hold_under_the_contract_that_a_right_subject_declares(real_run, card):
    subject = real_run.subject(card.spec, config=Config(world_sizes="2"))
    result = real_run.campaign(subject, budget=FEW, floor=Floor(cases=1))
    assert result.failures == ()
    assert result.verdict == "HOLDS"
    assert result.accounting.internal == 0


def test_a_breach_that_nothing_reports_is_no_card():
    with pytest.raises(CardError, match="reported_by"):
        ContractCard(key="inplace=yes", subject="X", does="", case="{}", breaks=True)

"""A floor: a verdict HOLDS needs cases, ranks that share a group, and the properties that were asked for."""

from __future__ import annotations

import pytest

from verify.engine.floor import Floor
from verify.result import PropertyResult, StandsOn

ENOUGH = StandsOn(
    cases=40, synchronised=30, world_sizes={"1": 10, "2": 30}, properties=("forward", "grad_input", "ending")
)
JUDGED = {name: PropertyResult(holds=40) for name in ENOUGH.properties}


def lacking(floor: int = 20, *, asked: tuple[str, ...] | None = None, **changes: object) -> str:
    values = {name: getattr(ENOUGH, name) for name in ENOUGH.__struct_fields__} | changes
    properties = JUDGED | {"running_var": PropertyResult(undecided=3)} if asked == () else JUDGED
    return Floor(cases=floor).lacking(StandsOn(**values), properties, asked=asked or None)


def test_what_stands_on_enough_lacks_nothing() -> None:
    assert lacking() == ""


@pytest.mark.parametrize(
    ("cases", "floor", "words"), [(19, 20, "19 cases"), (1, 2, "1 case,"), (0, 1, "0 cases")]
)
def test_too_few_cases_are_told_with_how_many_it_needs(cases: int, floor: int, words: str) -> None:
    text = lacking(floor, cases=cases, synchronised=cases)
    assert words in text
    assert f"needs {floor} or more" in text
    assert "--min-cases" in text


def test_ranks_that_never_shared_a_group_say_nothing_of_synchronisation_whatever_the_floor() -> None:
    for floor in (1, 20):
        assert "synchronisation" in lacking(floor, synchronised=0)


def test_a_quarter_of_the_cases_must_be_synchronised() -> None:
    assert "needs 5" in lacking(20, synchronised=4)
    assert lacking(20, synchronised=5) == ""


def test_a_property_that_was_asked_for_must_be_decided() -> None:
    assert lacking(asked=("forward", "refusal")) == "refusal could be decided on no case"
    assert lacking(asked=("forward",)) == ""


def test_numbers_that_were_judged_and_never_decided_are_named() -> None:
    assert lacking(asked=()) == "running_var could be decided on no case"


def test_a_campaign_that_the_net_ended_lacks_its_rest() -> None:
    assert "safety net of 1800 s ended it after 40 cases" in Floor().lacking(ENOUGH, JUDGED, cut=1800.0)


@pytest.mark.parametrize(("cases", "shares", "share"), [(20, 4, 5), (1, 4, 1), (10, 4, 3)])
def test_a_share_of_a_floor(cases: int, shares: int, share: int) -> None:
    assert Floor(cases=cases).of_a_share(shares) == Floor(cases=share)

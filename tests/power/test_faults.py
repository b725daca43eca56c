"""Every fault of the catalogue is caught on seed 1 by all the properties that must catch it.

Each day some of each family are, with all the properties that catch faults of it; all are with `--costly`.
The whole measurement, with five seeds, minimal cases and causes, is `python -m verify faults`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from verify.faults.cards import Card, cards
from verify.measure.power.pool_worker import judge
from verify.measure.power.work_units import Effort, FaultUnit

HANGING = {"ending", "collectives"}
"""Faults that these catch may hang, which takes the time of many others."""
LARGE = {"sizes"}
"""Families of faults that only real sizes show, of which few cases are drawn: a fault takes up to 90 s."""
EFFORT = Effort(seconds=None, tries=1, tries_total=1, diagnose=False)
"""As many cases as by default, whatever the load of the machine; no minimising: its candidates hang, too."""
MASKED = [card for card in cards() if card.masked]


def pairs(card: Card) -> set[tuple[str, str]]:
    """Return the properties that catch a fault with its family, but without it where the fault may hang.

    Of a family of large faults one is enough, whatever catches it.
    """
    if card.family in LARGE:
        return {(card.family, "")}
    return {("" if name in HANGING else card.family, name) for name in card.caught_by}


def covering(faults: Sequence[Card]) -> Iterator[Card]:
    """Yield faults that together have every property of each family, few, and few that hang."""
    seen: set[tuple[str, str]] = set()
    for card in sorted(faults, key=lambda card: (bool(HANGING & set(card.caught_by)), -len(card.caught_by))):
        if pairs(card) - seen:
            seen |= pairs(card)
            yield card


EVERYDAY = {card.id for card in (*covering([card for card in cards() if not card.masked]), *MASKED[::10])}
"""Of the masked ones a sample: each replays torch's stored cases, which takes a second."""


@pytest.mark.parametrize(
    "card",
    [
        pytest.param(card, id=card.id, marks=() if card.id in EVERYDAY else pytest.mark.costly)
        for card in cards()
    ],
)
def test_fault_is_caught_by_all_the_properties_that_must(real_run, card):
    outcome = judge(FaultUnit(card=card, seed=1, effort=EFFORT), real_run)
    assert outcome.caught
    assert outcome.lacking == ()
    assert outcome.internal == 0


def test_every_property_that_catches_a_fault_of_a_family_is_tried_every_day():
    unmasked = [card for card in cards() if not card.masked]
    everyday = [card for card in unmasked if card.id in EVERYDAY]
    assert set().union(*map(pairs, everyday)) == set().union(*map(pairs, unmasked))

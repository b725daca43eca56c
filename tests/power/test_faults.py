"""Every fault of the catalogue is caught on seed 1 by all the properties that must catch it.

The whole measurement, with five seeds, minimal cases and causes, is `python -m verify faults`.
"""

from __future__ import annotations

import pytest

from verify.faults.cards import cards
from verify.power.units import Effort, FaultUnit
from verify.power.worker import judge

MASKED = [card for card in cards() if card.masked]
CARDS = [card for card in cards() if not card.masked] + MASKED[::5]
"""Of the masked ones a sample: each replays torch's stored cases, which takes a second."""
EFFORT = Effort(seconds=None, tries=15, tries_total=15, diagnose=False)
"""The default number of cases, whatever the load of the machine, next to no minimising, and no causes."""


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_fault_is_caught_by_all_the_properties_that_must(real_run, card):
    outcome = judge(FaultUnit(card=card, seed=1, effort=EFFORT), real_run)
    assert outcome.caught
    assert outcome.lacking == ()
    assert outcome.internal == 0

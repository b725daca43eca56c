"""Conversion on real ranks: right converters hold on every tree, faulty ones fail on one of a single item."""

from __future__ import annotations

import pytest

from properties.case import Case
from properties.probe import TREE_ITEMS
from verify.faults.cards import cards

FAULTS = [card for card in cards() if card.family == "conversion"]


def verdicts(run, spec, seeds, **fields):
    """Return, for each seed, what `conversion` says of the tree, and what was excused."""
    examiner = run.examiner(run.subject(spec))
    found = {}
    for seed in seeds:
        trial = examiner.examine(Case(batches=(2, 2), probe="conversion", seed=seed, **fields), grades=False)
        assert not trial.internal
        verdict = next(one for one in trial.verdicts if one.property == "conversion")
        found[seed] = (verdict, trial.excused)
    return found


def test_aggregated_converts_every_tree(real_run):
    seeds = (*range(TREE_ITEMS), *range(1000, 1020))
    found = verdicts(real_run, "aggregated", seeds)
    assert {verdict.outcome.value for verdict, _ in found.values()} == {"HOLDS"}
    assert min(verdict.elements for verdict, _ in found.values()) > 40
    assert max(verdict.elements for verdict, _ in found.values()) > 1000


def test_torch_departs_only_where_it_is_known_to(real_run):
    found = verdicts(real_run, "torch", range(TREE_ITEMS))
    excused = {seed for seed, (_, entries) in found.items() if entries}
    assert not any(verdict.outcome.value == "VIOLATED" for verdict, _ in found.values())
    assert all(found[seed][0].outcome.value == "HOLDS" for seed in found if seed not in excused)
    assert 0 < len(excused) <= 5


def test_a_subject_without_a_converter_tells_nothing(real_run):
    spec = "verify.faults.right:TwoPass"
    assert not real_run.subject(spec).converts
    trial = real_run.examiner(real_run.subject(spec)).examine(Case(probe="conversion"))
    assert "conversion" not in [verdict.property for verdict in trial.verdicts]
    assert trial.observation.ranks[0].facts == {}


@pytest.mark.parametrize("card", FAULTS, ids=lambda card: card.id)
def test_a_faulty_converter_fails_on_a_tree_of_one_item_and_only_where_its_fault_is(real_run, card):
    found = verdicts(real_run, card.spec, range(TREE_ITEMS), groups=((0,), (1,)))
    outcomes = [verdict.outcome.value for verdict, _ in found.values()]
    assert "VIOLATED" in outcomes
    if card.id in ("convert-drops-behaviour", "convert-too-much", "convert-resets-group"):
        assert outcomes.count("VIOLATED") == 1

"""Units share out the work: every fault on every seed, every case of a right subject once."""

from __future__ import annotations

import msgspec
import pytest

from tests.verify.measure.power.samples import RIGHT, card
from verify.measure.power.work_units import (
    QUICK_TRIES,
    Effort,
    SelectionError,
    Unit,
    chosen,
    fault_units,
    right_units,
)

CARDS = (card("a", family="one"), card("b", family="one"), card("c", family="two"))


@pytest.mark.parametrize(
    ("names", "ids"), [([], "abc"), (["one"], "ab"), (["c"], "c"), (["c", "two", "a"], "ac")]
)
def test_faults_are_chosen_by_id_or_family_in_the_order_of_the_catalogue(names, ids):
    assert [one.id for one in chosen(CARDS, RIGHT, names)[0]] == list(ids)


def test_an_unknown_name_is_refused_with_the_families():
    with pytest.raises(SelectionError, match=r"families among one, right, two, written, but got x, y\."):
        chosen(CARDS, RIGHT, ["y", "a", "x"])


@pytest.mark.parametrize(
    ("names", "right"),
    [([], "AB"), (["one"], ""), (["written"], "B"), (["A", "two"], "A"), (["right", "B"], "AB")],
)
def test_right_subjects_are_chosen_by_name_or_family(names, right):
    assert [one.name for one in chosen(CARDS, RIGHT, names)[1]] == list(right)


def test_units_of_right_subjects_have_the_domain_asked_for():
    (unit,) = right_units(RIGHT[:1], cases=3, domain={"values": "constant"})
    assert unit.domain == {"values": "constant"}


def test_each_fault_has_a_unit_for_each_seed():
    made = list(fault_units(CARDS, seeds=3, effort=Effort(cases=5, seconds=None)))
    assert [(unit.card.id, unit.seed) for unit in made] == [(i, seed) for seed in (1, 2, 3) for i in "abc"]
    assert {unit.effort.budget.cases for unit in made} == {5}
    assert [unit.effort.diagnose for unit in made] == [unit.seed == 1 for unit in made]
    assert all(unit.effort.tries_total <= QUICK_TRIES for unit in made if unit.seed > 1)


@pytest.mark.parametrize("cases", [1, 2, 3, 7, 100, 101])
def test_units_of_right_subjects_have_exactly_the_cases_asked_for_and_seeds_of_their_own(cases):
    made = list(right_units(RIGHT, cases=cases, chunk=7))
    assert sum(unit.cases for unit in made) == cases
    assert all(1 <= unit.cases <= 7 for unit in made)
    assert len({unit.seed for unit in made}) == len(made)
    shares = [sum(unit.cases for unit in made if unit.card == one) for one in RIGHT]
    assert max(shares) - min(shares) <= 1


def test_a_unit_survives_the_way_to_a_worker():
    for unit in (*fault_units(CARDS, seeds=1, effort=Effort()), *right_units(RIGHT, cases=9)):
        assert msgspec.json.decode(msgspec.json.encode(unit), type=Unit) == unit

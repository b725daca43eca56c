"""Right subjects, written differently, are not accused: 30 cases each, 3,000 more of all with `--costly`."""

from __future__ import annotations

import pytest

from properties.case import decode
from verify.config import Budget, Config
from verify.faults.cards import right_cards
from verify.measure.power.pool_worker import judge
from verify.measure.power.work_units import right_units

OWN_FORMULAS = tuple(card for card in right_cards() if "faults.written" not in card.spec)
EVERYDAY = tuple(right_units(OWN_FORMULAS, cases=30 * len(OWN_FORMULAS), chunk=30))
COSTLY = tuple(right_units(OWN_FORMULAS, cases=3000, chunk=125))
CASES = Budget(cases=60, seconds=None)


@pytest.mark.parametrize(
    "unit",
    [
        pytest.param(unit, id=f"{unit.card.spec}-{unit.seed}-{unit.cases}", marks=marks)
        for units, marks in ((EVERYDAY, ()), (COSTLY, pytest.mark.costly))
        for unit in units
    ],
)
def test_right_subject_is_not_accused_at_the_grade_of_its_card(real_run, unit):
    outcome = judge(unit, real_run)
    assert outcome.accusations == ()
    assert outcome.accused == 0
    assert outcome.internal == 0
    assert outcome.cases == unit.cases
    assert {cell.property for cell in outcome.cells} >= {"forward", "running_var", "grad_input", "ending"}


def test_each_day_has_cases_of_every_right_subject():
    assert {unit.card.spec for unit in EVERYDAY} == {card.spec for card in OWN_FORMULAS}


def test_a_gradient_that_may_overflow_either_way_is_not_decided(real_run):
    """Equal and large values, and a tiny eps: the bound reaches beyond float16 both ways."""
    case = decode(
        '{"batches":[2,1],"channels":32,"dtype":"float16","eps":1e-12,"rank_offset":1,"seed":498176092,'
        '"values":"large_offset"}'
    )
    for spec in ("torch", "aggregated", "verify.faults.right:TwoPass"):
        assert real_run.examiner(real_run.subject(spec)).examine(case).violated == ()


@pytest.mark.parametrize("card", right_cards(), ids=lambda card: card.spec)
def test_the_grade_of_a_card_is_the_one_that_its_subject_declares(real_run, card):
    assert real_run.subject(card.spec).promise.grade == card.grade


def test_a_subject_that_breaks_grade_a_satisfies_the_grade_it_deserves(real_run):
    """One-pass variance is accused at grade A on data with a large mean, and told that C suits it."""
    spec = "verify.faults.right:OnePass"
    config = Config(domain=("values=large_offset", "dtypes=float32", "eval=no"), grade="A")
    result = real_run.campaign(real_run.subject(spec, config=config), budget=CASES)
    assert result.verdict == "VIOLATED"
    assert {failure.property for failure in result.failures} <= {
        "forward",
        "running_var",
        "grad_input",
        "grad_weight",
    }
    assert result.grade["float32"] == "C"

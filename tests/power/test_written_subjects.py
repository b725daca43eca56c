"""Right subjects in plain torch, thirty of them, are not reported at their grade, extremes included."""

from __future__ import annotations

import pytest

from properties.case import decode
from verify.config import Config, setting_texts
from verify.faults.cards import right_cards
from verify.measure.power.fault_campaign import judge_right
from verify.measure.power.work_units import RightUnit

WRITTEN = tuple(card for card in right_cards() if card.spec.startswith("verify.faults.written:"))
EXTREMES = "constant,subnormal,near_overflow,tiny_spread,large_offset"


def judged(run, card, seed, cases, **domain):
    config = Config(domain=setting_texts(domain), grade=card.grade)
    unit = RightUnit(card=card, seed=seed, cases=cases)
    return judge_right(unit, run.examiner(run.subject(card.spec, config=config)))


@pytest.mark.parametrize("card", WRITTEN, ids=lambda card: card.spec.partition(":")[2])
@pytest.mark.parametrize("cases", [10, pytest.param(20, marks=pytest.mark.costly)])
def test_a_subject_in_plain_torch_is_not_reported(real_run, card, cases):
    seed = 1 + WRITTEN.index(card)
    for outcome in (
        judged(real_run, card, seed, cases),
        judged(real_run, card, 100 + seed, cases, values=EXTREMES),
    ):
        assert outcome.accusations == ()
        assert outcome.internal == 0
        assert outcome.cases == cases
        assert {cell.property for cell in outcome.cells} >= {"forward", "running_var", "grad_input"}


def test_the_subjects_are_many_and_differ():
    assert len({card.spec for card in WRITTEN}) == len(WRITTEN) >= 24
    assert len({card.differs for card in WRITTEN}) == len(WRITTEN)
    assert {card.grade for card in WRITTEN} == {"A", "B", "C"}


def test_the_lanes_of_torchs_own_kernel_are_grade_b(real_run):
    """A plane of 4,860 values is added up in eight lanes, 608 one by one: 1.008 x the bound of grade A."""
    case = decode(
        '{"batches":[1,107],"cotangent_layout":"expanded","seed":15138816,"spatial":[[3,3,5]],'
        '"values":"large_offset"}'
    )
    (card,) = (card for card in WRITTEN if card.spec.endswith(":NativeOnWhole"))
    subject = real_run.subject(card.spec, config=Config(grade=card.grade))
    trial = real_run.examiner(subject).examine(case)
    assert (card.grade, trial.violated, trial.internal) == ("B", (), "")


REPORTED = (
    '{"batches":[2],"steps":[{"mode":"eval"}],"tracking":false,"values":"near_overflow"}',
    '{"batches":[2,2],"values":"near_overflow"}',
    '{"batches":[1,3],"values":"near_overflow","seed":3}',
)


@pytest.mark.parametrize("text", REPORTED)
@pytest.mark.parametrize("name", ["SumsRsqrt", "SumsPower", "SumsDivided", "VarMeanRsqrt"])
def test_what_the_cube_of_the_scale_loses_near_overflow_is_not_reported(real_run, name, text):
    """Rsqrt differentiates to its cube, which is zero there (2371 x bound before the bound had its term)."""
    trial = real_run.examiner(real_run.subject(f"verify.faults.written:{name}")).examine(decode(text))
    verdicts = {verdict.property: verdict for verdict in trial.verdicts}
    assert not trial.violated
    assert verdicts["grad_input"].elements > verdicts["grad_input"].undecided

"""Minimising on real ranks: a fault that shows on two ranks and one channel is shown by such a case."""

from __future__ import annotations

import pytest

from properties.case import decode
from verify.config import Budget, Policy
from verify.faults.cards import cards
from verify.measure.power.pool_worker import judge
from verify.measure.power.work_units import Effort, FaultUnit

SMALL = ("backward-local-sums", "tutorial-unweighted-ranks", "variance-local-bessel", "group-forgotten")
PATIENT = Effort(cases=200, seconds=None, tries=600, tries_total=1200)


@pytest.mark.parametrize(
    "fault", [SMALL[0], *(pytest.param(fault, marks=pytest.mark.costly) for fault in SMALL[1:])]
)
def test_minimal_case_has_two_ranks_and_one_channel(real_run, fault):
    (card,) = (card for card in cards() if card.id == fault)
    outcome = judge(FaultUnit(card=card, seed=1, effort=PATIENT), real_run)
    case = decode(outcome.smallest.case)
    assert (case.world_size, case.channels) == (2, 1)
    assert outcome.smallest.values <= 8


def campaign(run, spec):
    policy = Policy(fail_fast=True, tries=400, tries_total=400)
    return run.campaign(run.subject(spec), budget=Budget(cases=200), policy=policy)


def test_detached_statistics_have_a_right_forward(real_run):
    result = campaign(real_run, "verify.faults.tutorial:DetachedStatistics")
    assert [failure.property for failure in result.failures] == ["grad_input"]


@pytest.mark.costly
def test_control_is_reported_with_a_minimal_case_that_replays(real_run):
    result = campaign(real_run, "local")
    case = result.failures[0].case
    assert result.verdict == "VIOLATED"
    assert case.world_size == 2
    assert case.channels == 1
    assert all(case.count_of(rank) in (1, 2) for rank in range(2))
    trial = real_run.examiner(real_run.subject("local")).examine(case)
    assert result.failures[0].property in trial.violated

"""The tutorial version of aggregation: each of its flaws alone is reported within 200 cases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from verify.campaign import Budget, Policy

FLAWS = {
    "FreshZeros": {"forward", "running_mean"},
    "NoBetweenRank": {"forward", "running_var"},
    "UnweightedRanks": {"forward", "running_mean"},
    "DetachedStatistics": {"grad_input"},
    "NoRunningBuffers": {"running_mean", "running_var"},
}


def campaign(run, spec, **policy):
    settings = replace(
        run.settings, budget=Budget(cases=200, seconds=None), policy=Policy(minimise_seconds=4.0, **policy)
    )
    return run.campaign(run.subject(spec), settings=settings)


@pytest.mark.parametrize("flaw", FLAWS)
def test_each_flaw_alone_is_reported_within_200_cases(real_run, flaw):
    result = campaign(real_run, f"verify.faults.tutorial:{flaw}", minimise_total=8.0)
    assert FLAWS[flaw] <= {failure.property for failure in result.failures}
    assert result.accounting.internal == 0


def test_detached_statistics_have_a_right_forward(real_run):
    result = campaign(real_run, "verify.faults.tutorial:DetachedStatistics", fail_fast=True)
    assert [failure.property for failure in result.failures] == ["grad_input"]


def test_control_is_reported_with_a_minimal_case_that_replays(real_run):
    result = campaign(real_run, "local", fail_fast=True)
    case = result.failures[0].case
    assert result.verdict == "VIOLATED"
    assert case.world_size == 2
    assert case.channels == 1
    assert all(case.count_of(rank) in (1, 2) for rank in range(2))
    trial = real_run.examiner(real_run.subject("local")).examine(case)
    assert result.failures[0].property in trial.violated

"""Conformance of the three systems: on this machine, as busy as it is, each meets its expectation."""

from __future__ import annotations

import pytest

from verify.engine.campaign import Budget, Policy
from verify.engine.engine import Run, Settings
from verify.engine.floor import Floor
from verify.subjects.builtins import BUILTINS


@pytest.mark.costly  # what is here of 20 cases, the command that CI begins with does of 500
@pytest.mark.parametrize("name", BUILTINS)
def test_a_system_meets_its_expectation_and_nothing_hangs(name: str) -> None:
    settings = Settings(
        seed=1, budget=Budget(cases=20), policy=Policy(fail_fast=True, tries=30), floor=Floor(cases=10)
    )
    with Run(settings) as run:
        result = run.campaign(run.subject(name, expectation=BUILTINS[name].expectation))
    assert result.verdict == BUILTINS[name].expectation
    assert (result.accounting.hung, result.accounting.internal) == (0, 0)

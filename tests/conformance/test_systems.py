"""Conformance of the three systems: on this machine, as busy as it is, each meets its expectation."""

from __future__ import annotations

import pytest

from verify.config import Config, Policy
from verify.engine.engine import Run
from verify.subjects.builtins import BUILTINS


@pytest.mark.costly  # what is here of 20 cases, the command that CI begins with does of 500
@pytest.mark.parametrize("name", BUILTINS)
def test_a_system_meets_its_expectation_and_nothing_hangs(name: str) -> None:
    with Run(Config(seed=1, cases=20, min_cases=10)) as run:
        subject = run.subject(name, expectation=BUILTINS[name].expectation)
        result = run.campaign(subject, policy=Policy(fail_fast=True, tries=30))
    assert result.verdict == BUILTINS[name].expectation
    assert (result.accounting.hung, result.accounting.internal) == (0, 0)

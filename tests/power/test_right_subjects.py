"""Right subjects, written differently, are not accused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from verify.campaign import Budget

CASES = Budget(cases=60, seconds=None)
SUBJECTS = {
    "aggregated": "A",
    "verify.faults.right:TwoPass": "A",
    "verify.faults.right:Welford": "B",
    "verify.faults.right:AllGather": "A",
    "verify.faults.right:AllReduce": "A",
    "verify.faults.right:Folded": "A",
    "verify.faults.right:Float64": "A",
    "verify.faults.right:Sequential": "B",
    "verify.faults.right:Pairwise": "A",
    "verify.faults.right:Blocks": "A",
    "verify.faults.right:OnePass": "C",
}


@pytest.mark.parametrize("spec", SUBJECTS)
def test_right_subject_holds_at_the_grade_it_declares(real_run, spec):
    result = real_run.campaign(real_run.subject(spec), settings=replace(real_run.settings, budget=CASES))
    assert result.required == SUBJECTS[spec]
    assert result.failures == ()
    assert result.verdict == "HOLDS"
    assert result.accounting.cases >= 60
    assert result.accounting.internal == 0


def test_a_subject_that_breaks_grade_a_satisfies_the_grade_it_deserves(real_run):
    """One-pass variance is accused at grade A on data with a large mean, and told that C suits it."""
    from verify.subject import Overrides

    spec = "verify.faults.right:OnePass"
    overrides = Overrides(
        domain={"values": "large_offset", "dtypes": "float32", "eval": "no"}, grade="A", contract={}
    )
    subject = real_run.subject(spec, overrides=overrides)
    result = real_run.campaign(subject, settings=replace(real_run.settings, budget=CASES))
    assert result.verdict == "VIOLATED"
    assert {failure.property for failure in result.failures} <= {
        "forward",
        "running_var",
        "grad_input",
        "grad_weight",
    }
    assert result.grade["float32"] == "C"

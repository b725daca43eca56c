"""Failing cases are told once, and what is of the same cause beside them."""

from __future__ import annotations

import msgspec

from properties.case import Case
from properties.verdict import Discrepancy
from verify.report.failing import by_cause
from verify.result import Failure

CASE = Case(seed=42)
FORWARD = Discrepancy(quantity="output.0", rank=1, index=(1, 0), bound=9.8e-4, ratio=3.986)


def test_a_failing_case_says_how_often_its_failures_were_seen() -> None:
    common = {"case": CASE, "found": CASE.id, "minimised": True}
    first = Failure(property="forward", discrepancy=FORWARD, text="VIOLATED forward", cases=107, **common)
    other = Failure(property="grad_bias", discrepancy=FORWARD, text="", cases=2, **common)
    (told,) = by_cause([first, other])
    assert "\nSeen in 107 cases.\n" in told
    assert told.endswith("4.0 x bound (2 cases)")
    assert "Seen in" not in next(by_cause([msgspec.structs.replace(first, cases=1)]))


def test_what_other_cases_show_of_the_same_cause_is_told_beside_it() -> None:
    other_case = msgspec.structs.replace(CASE, seed=CASE.seed + 1)
    common = {"discrepancy": FORWARD, "minimised": True, "resembles": ("equal-weights",), "stage": "merge"}
    first = Failure(property="forward", case=CASE, found=CASE.id, text="VIOLATED forward", **common)
    other = Failure(property="grad_bias", case=other_case, found=CASE.id, text="VIOLATED grad_bias", **common)
    (told,) = by_cause([first, other])
    assert "VIOLATED grad_bias" not in told
    assert told.endswith(f"4.0 x bound; case {other_case.id}")
    for changes in ({"stage": "buffers"}, {"resembles": ("no-eps",)}, {"resembles": ()}):
        assert len(list(by_cause([first, msgspec.structs.replace(other, **changes)]))) == 2

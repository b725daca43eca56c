"""What is told of a slow subject, and of a compiled one."""

from __future__ import annotations

import pytest

from verify.report.pace import forecast, pace_lines
from verify.result import Pace

SLOW = Pace(case_seconds=41.0)


def test_a_slow_subject_is_told_early_what_a_case_takes_and_what_all_will() -> None:
    told = forecast(SLOW, number=3, cases=500)
    assert told == (
        "a case takes 41 s on the ranks; 500 cases would take 5.7 h; narrow the domain or give fewer --cases"
    )
    assert forecast(SLOW, number=30, cases=500) == told
    assert forecast(SLOW, number=3, cases=None).endswith("narrow the domain if that is too long")


@pytest.mark.parametrize(("pace", "number"), [(SLOW, 2), (SLOW, 4), (Pace(case_seconds=0.9), 3)])
def test_otherwise_nothing_is_told(pace: Pace, number: int) -> None:
    assert forecast(pace, number=number, cases=500) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1.0, "50 s"), (2.4, "2.0 min"), (14.0, "12 min"), (240.0, "3.3 h")],
)
def test_long_times_are_told_in_minutes_and_hours(seconds: float, words: str) -> None:
    assert f"50 cases would take {words};" in forecast(Pace(case_seconds=seconds), number=3, cases=50)


def test_a_summary_tells_what_was_slow_and_what_was_compiled() -> None:
    assert list(pace_lines(Pace(case_seconds=0.01))) == []
    slow, compiled = pace_lines(Pace(case_seconds=1.5, compiled=3, compile_seconds=150.0))
    assert slow == "  a case takes 1.5 s on the ranks"
    assert compiled.startswith("  a rank compiled 3 functions in 2.5 min; ")

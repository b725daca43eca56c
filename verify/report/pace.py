"""The pace of a slow subject: what a case takes on the ranks, and what all will take, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from verify.report.words import count
from verify.result import Pace

SLOW_SECONDS = 1.0
"""A subject is slow from so many seconds a case on; a usual one takes a hundredth."""
_AFTER = (3, 30)
"""Cases after which it is told: early, since a user may not want to wait, and once more, better estimated."""


def forecast(pace: Pace, *, number: int, cases: int | None) -> str:
    """Return what to tell of a slow subject once `number` of its `cases` are judged; usually nothing."""
    if number not in _AFTER or pace.case_seconds < SLOW_SECONDS:
        return ""
    if cases is None:
        return f"{_takes(pace)}; narrow the domain if that is too long"
    whole = _duration(pace.case_seconds * cases)
    return (
        f"{_takes(pace)}; {count(cases, 'case')} would take {whole}; narrow the domain or give fewer --cases"
    )


def pace_lines(pace: Pace) -> Iterator[str]:
    """Yield what a summary tells of a subject that is slow or compiled."""
    if pace.case_seconds >= SLOW_SECONDS:
        yield f"  {_takes(pace)}"
    if pace.compiled:
        functions = count(pace.compiled, "function")
        yield (
            f"  a rank compiled {functions} in {_duration(pace.compile_seconds)}; "
            "torch's limits of recompilation are raised, so that none runs uncompiled"
        )


def _takes(pace: Pace) -> str:
    return f"a case takes {pace.case_seconds:.2g} s on the ranks"


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"

"""Recurrence: whether a smallest case fails by itself, or by what ran before it in the same processes.

A subject may keep something from one case to the next: a cache by shape, a counter, a workspace. Its smallest
case then fails in a campaign and holds when somebody replays it. So a failure is told by what it did on ranks
that had run nothing before.

Theory of operation
-------------------
The case runs twice on new ranks. What fails both times needs nothing else; what fails once says which. Where
it holds both times, the cases that ran last, drawn or candidates, run before it: all of them, then the half
that still makes it fail, and so on, to the shortest sequence that shows it or as near to it as halving comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from properties.case import Case
from verify.engine.search import StopSearch
from verify.result import History

MOST_BEFORE = 64
"""Cases that ran before and may be what it needs."""


def history_of(
    case: Case, fails: Callable[[Case], bool], renew: Callable[[], None], before: Sequence[Case]
) -> History:
    """Return when `case`, which failed among others, fails.

    Args:
        case: The case.
        fails: Runs a case, and returns whether it fails in the same way.
        renew: Has the next case run on new ranks.
        before: What ran before the failing case was found, the latest last.

    Raises:
        StopSearch: If `fails` does, before anything is known.
    """

    def fails_after(earlier: Sequence[Case]) -> bool:
        renew()
        for one in earlier:
            fails(one)
        return fails(case)

    if fails_after(()):
        return History(when="" if fails(case) else "first")
    if fails(case):
        return History(when="again")
    needed = tuple(before[-MOST_BEFORE:])
    if not needed or not fails_after(needed):
        return History(when="unknown")
    with contextlib.suppress(StopSearch):  # what was found so far is true, and not the shortest
        while len(needed) > 1:
            half = len(needed) // 2
            shorter = next((part for part in (needed[half:], needed[:half]) if fails_after(part)), None)
            if shorter is None:
                break
            needed = shorter
    return History(when="after", after=needed)

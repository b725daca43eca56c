"""Drawing: Hypothesis draws of default cases as a campaign makes them, with nothing done to the cases."""

from __future__ import annotations

from collections.abc import Callable

from properties.case import Case
from properties.domain import Domain
from verify.engine.search import Source, draw
from verify.engine.seeds import derive


def draw_cases(take: Callable[[Case], object], *, number: int, seed: int) -> int:
    """Give `take` the first `number` cases of a campaign with this seed; return how many there were."""
    from properties.generation.strategies import cases

    drawn = 0

    def count(case: Case, place: int) -> None:
        del place
        nonlocal drawn
        drawn += 1
        take(case)

    draw(Source(cases(Domain()), seed=derive(seed, 0), limit=number), count)
    return drawn

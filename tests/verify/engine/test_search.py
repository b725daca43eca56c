"""A hunt is bounded in tries, keeps the best case, and tells properties apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from properties.case import Case
from verify.engine.search import (
    Found,
    Limits,
    Minimum,
    PropertyFailed,
    Source,
    StopSearch,
    draw,
    failure_class,
    minimise,
)
from verify.engine.simplify import weight

CASES = st.builds(
    Case, batches=st.tuples(st.integers(1, 99), st.integers(1, 99)), channels=st.integers(1, 99)
)


SOURCE = Source(CASES, seed=3, limit=200)
AMPLE = Limits(tries=2000, seconds=60.0)


def found_by(rule: Callable[[Case], bool], source: Source = SOURCE) -> Found | None:
    """Return the first drawn case that breaks the rule."""
    found: list[Found] = []

    def take(case: Case, place: int) -> None:
        if rule(case):
            found.append(Found("forward", case, place))
            raise StopSearch

    draw(source, take)
    return found[0] if found else None


def hunted(rule: Callable[[Case], bool], **more: Any) -> Minimum:
    found = found_by(rule)
    assert found is not None
    return minimise(SOURCE, found, lambda case, name: rule(case), **({"limits": AMPLE} | more))


def test_nothing_is_found_where_nothing_fails() -> None:
    assert found_by(lambda case: False) is None


def test_the_smallest_case_is_found() -> None:
    found = hunted(lambda case: case.batches[0] >= 17 and case.channels >= 4)
    assert (found.case.batches, found.case.channels) == ((17,), 4)
    assert found.complete


def test_the_best_case_is_kept_when_the_time_is_over() -> None:
    ticks = itertools.count()
    calls = []

    def rule(case: Case) -> bool:
        calls.append(case)
        return case.channels >= 50

    found = hunted(rule, limits=Limits(tries=2000, seconds=10), clock=lambda: next(ticks))
    assert not found.complete
    assert weight(found.case) < weight(found.found)
    assert len(calls) < 200


def counted(rule: Callable[[Case], bool | None], **more: Any) -> tuple[Minimum, int]:
    """Return what was found by `rule`, and how often it was asked about cases that may run."""
    ran = []

    def fails(case: Case, name: str) -> bool | None:
        if (said := rule(case)) is not None:
            ran.append(case)
        return said

    found = found_by(lambda case: bool(rule(case)))
    assert found is not None
    return minimise(SOURCE, found, fails, **more), len(ran)


@pytest.mark.parametrize("tries", [1, 2, 17, 30])
def test_no_more_candidates_run_than_there_are_tries(tries: int) -> None:
    found, ran = counted(lambda case: case.channels >= 50, limits=Limits(tries=tries, seconds=60.0))
    assert ran == tries
    assert not found.complete


def test_a_slow_clock_changes_nothing_that_is_found() -> None:
    smallest = []
    for second in (0.0, 0.01, 0.5):
        ticks = itertools.count()
        smallest.append(
            counted(
                lambda case: case.channels >= 50,
                limits=Limits(tries=30, seconds=100.0),
                clock=lambda ticks=ticks, second=second: next(ticks) * second,
            )
        )
    assert smallest[0] == smallest[1] == smallest[2]


def test_a_candidate_that_may_not_run_is_no_try() -> None:
    asked = []

    def rule(case: Case) -> bool | None:
        asked.append(case)
        return None if case.batches[0] < 5 else case.channels >= 50

    found, ran = counted(rule, limits=Limits(tries=20, seconds=60.0))
    assert ran == 20 < len(asked)
    assert found.case.batches[0] >= 5


def test_a_later_draw_is_drawn_again_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.engine.search.simpler", lambda case: iter(()))
    drawn: list[Case] = []
    draw(SOURCE, lambda case, place: drawn.append(case))
    place = next(place for place in range(20, 200) if drawn[place].channels >= 40)
    found = Found("forward", drawn[place], place)
    smallest = minimise(SOURCE, found, lambda case, name: case.channels >= 40, limits=AMPLE)
    assert smallest.case.channels == 40
    assert smallest.case.batches == (1, 1)


def test_hypothesis_itself_shrinks_before_the_case_is_simplified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.engine.search.simpler", lambda case: iter(()))
    found = hunted(lambda case: case.batches[0] >= 17 and case.channels >= 4)
    assert (found.case.batches, found.case.channels) == ((17, 1), 4)


def test_a_case_may_end_the_draws() -> None:
    drawn = []

    def take(case: Case, place: int) -> None:
        drawn.append(place)
        if len(drawn) == 7:
            raise StopSearch

    draw(SOURCE, take)
    assert drawn == [*range(7)]


def test_an_interrupt_is_not_held_back() -> None:
    def take(case: Case, place: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(SOURCE, take)


def test_each_case_is_run_once_while_shrinking() -> None:
    seen: list[str] = []

    def fails(case: Case, name: str) -> bool:
        seen.append(case.id)
        return case.channels >= 3

    found = found_by(lambda case: case.channels >= 3)
    assert found is not None
    minimise(SOURCE, found, fails, limits=AMPLE)
    assert seen
    assert len(seen) == len(set(seen))


def test_each_property_has_an_exception_class_of_its_own() -> None:
    one, other = failure_class("running_mean"), failure_class("forward")
    assert one is failure_class("running_mean")
    assert one is not other
    assert issubclass(one, PropertyFailed)
    assert one.__name__ == "RunningMeanFailed"

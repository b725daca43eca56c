"""A hunt is bounded in time, keeps the best case, and tells properties apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st

from properties.case import Case
from verify.minimise import Minimum, Over, PropertyFailed, failure_class, hunt
from verify.simplify import weight

CASES = st.builds(
    Case, batches=st.tuples(st.integers(1, 99), st.integers(1, 99)), channels=st.integers(1, 99)
)


def hunted(rule: object, *, seconds: float = 3.0, clock: object = None, limit: int = 200) -> Minimum | None:
    more = {"clock": clock} if clock else {}
    return hunt(
        CASES,
        lambda case: "forward" if rule(case) else None,  # type: ignore[operator]
        lambda case, name: rule(case),  # type: ignore[operator]
        seed=3,
        limit=limit,
        seconds=seconds,
        **more,  # type: ignore[arg-type]
    )


def test_nothing_is_found_where_nothing_fails() -> None:
    assert hunted(lambda case: False) is None


def test_the_smallest_case_is_found() -> None:
    found = hunted(lambda case: case.batches[0] >= 17 and case.channels >= 4)
    assert found is not None
    assert (found.case.batches, found.case.channels) == ((17,), 4)
    assert found.complete


def test_the_best_case_is_kept_when_the_time_is_over() -> None:
    ticks = itertools.count()
    calls = []

    def rule(case: Case) -> bool:
        calls.append(case)
        return case.channels >= 50

    found = hunted(rule, seconds=10, clock=lambda: next(ticks))
    assert found is not None
    assert not found.complete
    assert weight(found.case) < weight(found.found)
    assert len(calls) < 200


def test_hypothesis_itself_shrinks_before_the_case_is_simplified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.minimise.simpler", lambda case: iter(()))
    found = hunted(lambda case: case.batches[0] >= 17 and case.channels >= 4)
    assert found is not None
    assert (found.case.batches, found.case.channels) == ((17, 1), 4)


def test_a_draw_may_end_the_hunt() -> None:
    drawn = []

    def draw(case: Case) -> str | None:
        drawn.append(case)
        if len(drawn) == 7:
            raise Over
        return None

    assert hunt(CASES, draw, lambda case, name: False, seed=1, limit=100, seconds=1) is None
    assert len(drawn) == 7


def test_an_interrupt_is_not_held_back() -> None:
    def draw(case: Case) -> str | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hunt(CASES, draw, lambda case, name: False, seed=1, limit=100, seconds=1)


def test_each_case_is_run_once_while_shrinking() -> None:
    seen: list[str] = []

    def fails(case: Case, name: str) -> bool:
        seen.append(case.id)
        return case.channels >= 3

    hunt(
        CASES,
        lambda case: "forward" if case.channels >= 3 else None,
        fails,
        seed=1,
        limit=200,
        seconds=3,
    )
    assert seen
    assert len(seen) == len(set(seen))


def test_each_property_has_an_exception_class_of_its_own() -> None:
    one, other = failure_class("running_mean"), failure_class("forward")
    assert one is failure_class("running_mean")
    assert one is not other
    assert issubclass(one, PropertyFailed)
    assert one.__name__ == "RunningMeanFailed"

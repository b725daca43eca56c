"""A deadline is the budget's seconds, or the net behind it."""

from __future__ import annotations

import math

import pytest

from verify.config import Budget
from verify.engine.deadline import Deadline


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def started(**budget: float | None) -> tuple[Deadline, Clock]:
    clock = Clock()
    deadline = Deadline(budget=Budget(**budget), clock=clock)  # type: ignore[arg-type]
    deadline.start()
    return deadline, clock


def test_without_seconds_nothing_ends() -> None:
    deadline, clock = started()
    clock.now = 1e9
    assert deadline.left() == math.inf
    assert not deadline.over
    assert not deadline.cut


@pytest.mark.parametrize(("limit", "cut"), [("seconds", False), ("net", True)])
def test_seconds_end_it_and_only_the_net_cuts(limit: str, cut: bool) -> None:
    deadline, clock = started(**{limit: 10.0})
    clock.now += 9.0
    assert deadline.left() == pytest.approx(1.0)
    assert not deadline.over
    clock.now += 1.5
    assert deadline.left() == 0.0
    assert deadline.over
    assert deadline.cut is cut


def test_what_an_interrupted_run_took_counts_for_the_budget_and_not_for_the_net() -> None:
    deadline, _ = started(seconds=10.0, net=10.0)
    deadline.recall(12.0)
    assert deadline.over
    assert not deadline.cut
    assert deadline.elapsed == pytest.approx(12.0)
    deadline.recall(3.0)
    assert deadline.elapsed == pytest.approx(12.0)

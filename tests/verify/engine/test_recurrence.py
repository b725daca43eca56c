"""Recurrence: when a smallest case fails, of subjects that keep something from one case to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from properties.case import Case
from properties.observation import Observation
from tests.verify.engine.test_campaign import run
from tests.verify.fakes import FakeRanks, returned
from verify.engine import findings
from verify.engine.recurrence import MOST_BEFORE, history_of
from verify.engine.search import StopSearch

CASE = Case(batches=(2,))
OTHERS = tuple(Case(batches=(2,), channels=number) for number in range(2, 6 + MOST_BEFORE))


class Process:
    """Processes of a subject that fails on CASE by what they have run before."""

    def __init__(self, fails: Callable[[list[Case]], bool]) -> None:
        self._fails = fails
        self.ran: list[Case] = []
        self.runs = 0

    def renew(self) -> None:
        self.ran = []

    def fails(self, case: Case) -> bool:
        before, self.ran = self.ran, [*self.ran, case]
        self.runs += 1
        return case == CASE and self._fails(before)


@pytest.mark.parametrize(
    ("fails", "when", "after"),
    [
        (lambda before: True, "", ()),
        (lambda before: not before, "first", ()),
        (lambda before: CASE in before, "again", ()),
        (lambda before: OTHERS[-3] in before, "after", (OTHERS[-3],)),
        (lambda before: {OTHERS[5], OTHERS[-2]} <= set(before), "after", OTHERS[-MOST_BEFORE:]),
        (lambda before: {OTHERS[-2], OTHERS[-1]} <= set(before), "after", OTHERS[-2:]),
        (lambda before: len(before) >= 3, "after", OTHERS[-4:]),
        (lambda before: False, "unknown", ()),
        (lambda before: OTHERS[0] in before, "unknown", ()),
    ],
)
def test_when_a_case_fails(fails: Any, when: str, after: tuple[Case, ...]) -> None:
    process = Process(fails)
    process.ran = [*OTHERS]
    found = history_of(CASE, process.fails, process.renew, OTHERS)
    assert (found.when, found.after) == (when, after)
    assert process.runs <= 2 + 3 * (MOST_BEFORE + 1)


def test_a_search_that_is_stopped_tells_the_sequence_that_it_has() -> None:
    process, left = Process(lambda before: OTHERS[-3] in before), [2 + MOST_BEFORE + 1 + 40]

    def fails(case: Case) -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise StopSearch
        return process.fails(case)

    found = history_of(CASE, fails, process.renew, OTHERS)
    assert found.when == "after"
    assert OTHERS[-3] in found.after
    assert 1 < len(found.after) < MOST_BEFORE


def test_without_cases_before_it_what_holds_on_new_ranks_is_unknown() -> None:
    assert history_of(CASE, lambda case: False, lambda: None, ()).when == "unknown"


class Stateful(FakeRanks):
    """Ranks that note how many cases the processes have run."""

    def __init__(self) -> None:
        super().__init__(self._noted)
        self.age = 0

    def renew(self, spec: str) -> None:
        super().renew(spec)
        self.age = 0

    def _noted(self, case: Case) -> Observation:
        self.age += 1
        return returned(case)


@pytest.mark.parametrize(
    ("fails", "when"),
    [
        (lambda age: True, ""),
        (lambda age: age == 1, "first"),
        (lambda age: age == 2, "again"),
        (lambda age: age > 2, "after"),
    ],
)
def test_a_failure_is_told_with_when_it_fails(fails: Callable[[int], bool], when: str) -> None:
    ranks = Stateful()
    rules = {"forward": lambda case: case.channels > 2 and (not ranks.renewed or fails(ranks.age))}
    result = run(rules, ranks=ranks)
    (failure,) = result.failures
    assert failure.history.when == when
    assert failure.repeats
    assert bool(failure.history.after) is (when == "after")
    assert failure.case.channels == 3, "also what fails on new ranks alone is minimised"
    assert ranks.renewed


def test_ranks_that_end_are_not_renewed_for_it() -> None:
    ranks = FakeRanks()
    result = run({"ending": lambda case: case.channels > 2}, ranks=ranks)  # the fake judge calls it a hang
    assert result.failures[0].history.when == ""
    assert not ranks.renewed


@pytest.mark.parametrize(("seconds", "renewals"), [(30.0, 2), (-1.0, 1)])
def test_a_slow_subject_is_not_run_for_ever_to_find_what_it_fails_by(
    monkeypatch: pytest.MonkeyPatch, seconds: float, renewals: int
) -> None:
    """Once on new ranks by itself, and once after others if there is time."""
    monkeypatch.setattr(findings, "RECURRENCE_SECONDS", seconds)
    ranks = Stateful()
    result = run({"forward": lambda case: case.channels > 2 and not ranks.renewed}, ranks=ranks)
    (failure,) = result.failures
    assert (failure.history.when, failure.repeats) == ("unknown", False)
    assert ranks.renewed == renewals

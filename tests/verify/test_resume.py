"""A run that was interrupted goes on: it ends as the same run in one go, and nothing is judged twice."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from properties.case import Case
from properties.observation import Observation
from tests.verify.fakes import FakeRanks, Heard, examiner, returned
from verify.campaign import Budget, Campaign, Policy
from verify.events import FailureMinimised
from verify.known import parse
from verify.memory import Memory, Place, Recalled
from verify.result import SubjectResult
from verify.subject import Subject
from verify.trial import Trial

RULES = {
    "forward": lambda case: case.channels > 5,
    "grad_input": lambda case: len(case.batches) > 2 and case.batches[0] > 3,
    "purity": lambda case: False,
}
KNOWN = """
[[known]]
id = "one-channel"
reason = "It is so."
case = '{"seed": 5, "channels": 7}'
when = [{fact = "world_size", at_least = 2}]
properties = ["forward"]
"""


class Killed(BaseException):
    """The process ended."""


class Kept(list[tuple[Trial, Place]]):
    """Everything that a record was given."""

    def add(self, trial: Trial, place: Place) -> None:
        self.append((trial, place))

    @property
    def drawn(self) -> list[str]:
        return [trial.case.id for trial, place in self if place.role == "drawn"]

    def memory(self) -> Memory:
        def load(trial: Trial, place: Place) -> Any:
            return lambda: Recalled(trial, place)

        return Memory([(trial.case.id, place, load(trial, place)) for trial, place in self])


def killed_at(number: int) -> FakeRanks:
    """Return ranks in whose run of that number the process ends."""

    def behave(case: Case) -> Observation:
        if len(ranks.cases) == number:
            raise Killed
        return returned(case)

    ranks = FakeRanks(behave)
    return ranks


def campaign(kept: Kept, *, ranks: FakeRanks | None = None, **more: Any) -> Campaign:
    subject = Subject(spec="fake:Subject", label="fake:Subject", known=parse(KNOWN))
    settings: dict[str, Any] = {"budget": Budget(cases=40, seconds=None), "policy": Policy(), **more}
    return Campaign(
        examiner=examiner(RULES, ranks=ranks, subject=subject),
        seed=3,
        emit=settings.pop("heard", Heard()).handle,
        keep=kept.add,
        **settings,
    )


def untimed(result: SubjectResult) -> SubjectResult:
    return msgspec.structs.replace(result, seconds=0.0)


def whole() -> tuple[SubjectResult, Kept, int]:
    kept, ranks = Kept(), FakeRanks()
    return campaign(kept, ranks=ranks).run(), kept, len(ranks.cases)


def test_a_campaign_that_is_killed_at_any_run_and_resumed_ends_as_in_one_go() -> None:
    expected, all_kept, runs = whole()
    assert {failure.property for failure in expected.failures} >= {"forward", "grad_input"}
    assert runs > 100
    for number in (1, 2, 7, 11, 20, 60, runs // 2, runs - 3, runs):
        kept = Kept()
        with pytest.raises(Killed):
            campaign(kept, ranks=killed_at(number)).run()
        before = len(kept)
        result = campaign(kept, memory=kept.memory()).run()
        assert untimed(result) == untimed(expected), number
        assert kept.drawn == all_kept.drawn, number
        assert len(kept.drawn) == len(set(kept.drawn))
        assert before <= number


def test_a_larger_budget_goes_on_from_what_was_judged() -> None:
    kept = Kept()
    first = campaign(kept).run()
    ranks = FakeRanks()
    result = campaign(kept, memory=kept.memory(), ranks=ranks, budget=Budget(cases=70, seconds=None)).run()
    assert result.accounting.cases == len(set(kept.drawn)) + 1 == 70 + 1
    assert len(kept.drawn) == 70
    ids = [{failure.case.id for failure in one.failures} for one in (first, result)]
    assert ids[0] <= ids[1]


def test_what_the_budget_draws_no_more_is_counted_all_the_same() -> None:
    """Another seed stands for another version of Hypothesis: nothing that was judged is drawn again."""
    kept, heard = Kept(), Heard()
    first = campaign(kept).run()
    other = campaign(kept, memory=kept.memory(), heard=heard)
    other.seed = 99
    before = len(kept)
    result = other.run()
    assert result.accounting.cases == first.accounting.cases
    assert {failure.property for failure in result.failures} == {f.property for f in first.failures}
    assert not [place for _, place in kept[before:] if place.role == "drawn"]
    assert len(heard.of(FailureMinimised)) == len(result.failures)


def test_seconds_that_were_used_up_are_not_given_twice() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    kept = Kept()
    budget = Budget(cases=None, seconds=4.0)
    first = campaign(kept, budget=budget, clock=clock).run()
    now[0] = 1000.0
    result = campaign(kept, memory=kept.memory(), budget=budget, clock=clock).run()
    assert result.accounting.cases - first.accounting.cases <= 1
    assert result.seconds == pytest.approx(first.seconds, rel=0.5)

"""What is judged, and said of it, does not depend on the speed of the machine; seconds asked for are kept."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from properties.case import Case
from properties.observation import Observation
from tests.verify.fakes import FakeRanks, Heard, Rules, ended, examiner, returned
from verify.config import Budget
from verify.engine.campaign import Campaign
from verify.engine.engine import exit_code
from verify.engine.floor import Floor
from verify.errors import UNDECIDED
from verify.events import CaseDrawn
from verify.result import SubjectResult

FAULTY: Rules = {
    "forward": lambda case: len(case.batches) > 1 and case.batches[0] != case.batches[1],
    "grad_input": lambda case: case.channels > 4,
    "ending": lambda case: False,
}
RIGHT: Rules = {"forward": lambda case: False, "ending": lambda case: False}


@dataclass
class Machine:
    """A machine on which a case takes so many seconds, and is ended where the campaign's time is over."""

    seconds: float
    now: float = 0.0

    def __post_init__(self) -> None:
        self.ranks = FakeRanks(self.behave)

    def clock(self) -> float:
        return self.now

    def behave(self, case: Case) -> Observation:
        left = self.ranks.left()
        self.now += min(self.seconds, left)
        return returned(case) if self.seconds <= left else ended(case, "timeout")


def judged(
    rules: Rules, machine: Machine, budget: Budget, *, floor: int = 20
) -> tuple[SubjectResult, list[str]]:
    heard = Heard()
    result = Campaign(
        examiner=examiner(rules, ranks=machine.ranks),
        budget=budget,
        seed=1,
        emit=heard.handle,
        clock=machine.clock,
        floor=Floor(cases=floor),
    ).run()
    return result, [event.case.id for event in heard.of(CaseDrawn)]


def told(result: SubjectResult) -> tuple[object, ...]:
    """Return all that a result says but how long it took."""
    failures = [(f.property, f.case, f.found, f.minimised) for f in result.failures]
    return result.verdict, result.accounting, result.stands_on, result.properties, result.known, failures


@pytest.mark.parametrize("rules", [FAULTY, RIGHT], ids=["faulty", "right"])
def test_verdict_cases_and_minimal_cases_are_those_of_a_machine_of_any_speed(rules: Rules) -> None:
    budget = Budget(cases=100, net=1800.0)
    fast, drawn = judged(rules, Machine(0.001), budget)
    for seconds in (0.05, 0.2):
        slow, again = judged(rules, Machine(seconds), budget)
        assert slow.seconds > 40 * fast.seconds
        assert told(slow) == told(fast)
        assert again == drawn
    assert fast.accounting.cases == 100


@pytest.mark.parametrize("rules", [FAULTY, RIGHT], ids=["faulty", "right"])
@pytest.mark.parametrize("seconds", [0.2, 0.7, 7.0, 300.0])
def test_seconds_asked_for_are_kept_and_cut_no_case_that_counts(rules: Rules, seconds: float) -> None:
    result, _ = judged(rules, Machine(seconds), Budget(cases=None, seconds=60.0))
    assert 59.0 <= result.seconds <= 66.0
    assert result.accounting.hung == 0
    assert "ending" not in {failure.property for failure in result.failures}
    if rules is RIGHT:
        enough = result.accounting.cases >= 20
        assert result.verdict == ("HOLDS" if enough else "UNDECIDED")
        assert enough == (seconds < 3.0)
    else:
        assert result.verdict == ("VIOLATED" if seconds < 60.0 else "UNDECIDED")


def test_the_net_behind_the_default_budget_decides_nothing_and_says_so() -> None:
    result, _ = judged(RIGHT, Machine(10.0), Budget(net=1800.0))
    assert result.accounting.cases > 100
    assert (result.verdict, result.cut) == ("UNDECIDED", True)
    assert "safety net of 1800 s" in result.lacking
    assert exit_code([result]) == UNDECIDED


def test_what_was_violated_before_the_net_is_violated() -> None:
    result, _ = judged(FAULTY, Machine(10.0), Budget(net=1800.0))
    assert (result.verdict, result.cut, result.lacking) == ("VIOLATED", True, "")


def test_the_net_says_nothing_where_the_cases_had_ended() -> None:
    result, _ = judged(RIGHT, Machine(1.0), Budget(cases=100, net=100.5))
    assert (result.verdict, result.cut) == ("HOLDS", False)


@pytest.mark.parametrize(
    ("cases", "floor", "verdict"), [(19, 20, "UNDECIDED"), (20, 20, "HOLDS"), (3, 3, "HOLDS")]
)
def test_a_verdict_holds_needs_its_floor(cases: int, floor: int, verdict: str) -> None:
    result, _ = judged(RIGHT, Machine(0.01), Budget(cases=cases), floor=floor)
    assert result.verdict == verdict
    assert result.stands_on.cases == cases
    assert bool(result.lacking) == (verdict == "UNDECIDED")
    assert result.floor == floor

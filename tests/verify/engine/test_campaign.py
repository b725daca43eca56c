"""A campaign finds, minimises, counts and tells; over fake ranks, reference and properties."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from properties.case import Case
from properties.domain import Promise
from properties.observation import Observation, Raised
from tests.verify.fakes import FakeRanks, Heard, ended, examiner, returned
from verify.config import SAFETY_NET, Budget, Policy
from verify.engine.campaign import Campaign
from verify.engine.failures import MAX_EXCEPTIONS
from verify.engine.findings import MAX_DEADLY_RUNS, SHORT_SHARE
from verify.engine.seeds import derive
from verify.engine.tally import MAX_HUNG, MAX_SLOW
from verify.events import (
    CampaignEnded,
    CampaignStarted,
    CaseDrawn,
    CaseEnded,
    FailureFound,
    FailureMinimised,
    to_json,
)
from verify.known.entries import parse
from verify.result import Pace, SubjectResult
from verify.subject import Subject


def campaign(*args: Any, cases: int = 60, seed: int = 1, heard: Heard | None = None, **more: Any) -> Campaign:
    policy = more.pop("policy", Policy())
    return Campaign(
        examiner=examiner(*args, **more),
        budget=Budget(cases=cases),
        seed=seed,
        emit=(heard if heard is not None else Heard()).handle,
        policy=policy,
    )


def run(*args: Any, **more: Any) -> SubjectResult:
    return campaign(*args, **more).run()


def test_a_subject_that_violates_nothing_holds_with_all_its_counts() -> None:
    result = run({"forward": lambda case: False, "purity": lambda case: False})
    assert result.verdict == "HOLDS"
    assert result.accounting.cases == 60
    assert result.accounting.pairs == 120
    assert result.accounting.elements == 480
    assert result.properties["forward"].holds == 60
    assert result.grade == {"float32": "A"}


def test_several_faults_are_all_reported_each_with_its_smallest_case() -> None:
    result = run(
        {
            "forward": lambda case: len(case.batches) > 1 and case.batches[0] != case.batches[1],
            "grad_input": lambda case: case.channels > 4,
        }
    )
    found = {failure.property: failure for failure in result.failures}
    assert result.verdict == "VIOLATED"
    assert set(found) == {"forward", "grad_input"}
    assert sorted(found["forward"].case.batches) == [1, 2]
    assert found["forward"].case.channels == 1
    assert found["grad_input"].case.channels == 5
    assert found["grad_input"].case.batches == (1,)
    assert all(failure.minimised for failure in found.values())


def test_what_else_the_smallest_case_violates_is_told_with_it() -> None:
    heard = Heard()
    result = run({"forward": lambda case: True, "agreement": lambda case: True}, heard=heard)
    first, second = result.failures
    assert first.case == second.case
    assert [event.failure.property for event in heard.of(FailureMinimised)] == ["forward", "agreement"]


def test_the_same_seed_draws_the_same_cases_and_another_seed_others() -> None:
    drawn = []
    for seed in (1, 1, 2):
        heard = Heard()
        run({"forward": lambda case: False}, seed=seed, heard=heard)
        drawn.append([event.case.id for event in heard.of(CaseDrawn)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_each_case_is_judged_once() -> None:
    heard = Heard()
    run({"forward": lambda case: case.channels > 5}, heard=heard)
    ids = [event.case.id for event in heard.of(CaseDrawn)]
    assert len(ids) == len(set(ids)) == 60


def test_fail_fast_ends_at_the_first_failure() -> None:
    heard = Heard()
    result = run(
        {"forward": lambda case: case.channels > 3, "grad_input": lambda case: case.batches[0] > 5},
        policy=Policy(fail_fast=True),
        heard=heard,
    )
    assert len(result.failures) == 1
    assert result.stopped == "first failure"
    assert len(heard.of(CaseEnded)) < 60


def test_a_failure_of_our_own_machinery_is_counted_apart_and_judges_nothing() -> None:
    def expect(case: Case, contract: object, grade: str, *, device: str) -> Any:
        raise ZeroDivisionError("the reference broke")

    heard = Heard()
    result = run({"forward": lambda case: True}, expect=expect, heard=heard)
    assert result.verdict == "UNDECIDED"
    assert result.accounting.internal == result.accounting.cases == 60
    assert result.accounting.pairs == 0
    assert "the reference broke" in heard.of(CaseEnded)[0].internal


def test_an_interrupt_tells_the_result_so_far_and_goes_on_to_the_caller() -> None:
    def behave(case: Case) -> Observation:
        if len(ranks.cases) == 10:
            raise KeyboardInterrupt
        return returned(case)

    ranks, heard = FakeRanks(behave), Heard()
    with pytest.raises(KeyboardInterrupt):
        run({"forward": lambda case: False}, ranks=ranks, heard=heard)
    (end,) = heard.of(CampaignEnded)
    assert end.interrupted
    assert end.result.accounting.cases == 8  # the tenth was sent ahead of the ninth's observation
    assert end.result.stopped == "interrupted"


def test_a_failure_whose_minimising_is_interrupted_is_told_by_its_drawn_case() -> None:
    def behave(case: Case) -> Observation:
        if failed and case not in failed:
            raise KeyboardInterrupt
        return returned(case)

    def rule(case: Case) -> bool:
        if case.channels > 3:
            failed.append(case)
        return case.channels > 3

    failed: list[Case] = []
    heard = Heard()
    with pytest.raises(KeyboardInterrupt):
        run({"forward": rule}, ranks=FakeRanks(behave), heard=heard)
    (failure,) = heard.of(CampaignEnded)[0].result.failures
    assert failure.case == failed[0]
    assert "not minimised to the end" in failure.text


def test_a_subject_that_hangs_costs_few_and_short_waits() -> None:
    ranks = FakeRanks(lambda case: ended(case, "timeout") if 0 in case.batches else returned(case))
    result = run({"ending": lambda case: 0 in case.batches}, ranks=ranks, cases=300)
    assert result.stopped == f"{MAX_HUNG} cases hung"
    assert result.accounting.hung == MAX_HUNG
    assert ranks.timeouts[0] == 10.0
    assert 10.0 * SHORT_SHARE in ranks.timeouts


def slow_where(rule: Callable[[Case], bool]) -> FakeRanks:
    return FakeRanks(lambda case: ended(case, "slow") if rule(case) else returned(case))


def test_a_case_given_up_as_too_slow_leaves_the_subject_undecided_and_few_of_them_end_the_drawing() -> None:
    result = run({"forward": lambda case: False}, ranks=slow_where(lambda case: 0 in case.batches), cases=300)
    assert result.verdict == "UNDECIDED"
    assert result.stopped.endswith(" cases took too long; give more --case-seconds")
    assert MAX_SLOW <= result.accounting.slow <= MAX_SLOW + 2, "those in flight beside"
    assert (result.accounting.hung, result.failures) == (0, ())


def test_what_is_violated_stays_so_where_another_case_was_too_slow() -> None:
    slow = slow_where(lambda case: case.channels == 1)
    result = run({"forward": lambda case: case.channels == 2}, ranks=slow, cases=100)
    assert result.accounting.slow
    assert result.verdict == "VIOLATED"


def test_the_seconds_that_a_subject_asks_for_are_those_of_its_cases_and_a_share_of_them_in_a_hurry() -> None:
    promise = Promise(case_seconds=60.0)
    ranks = FakeRanks(lambda case: ended(case, "timeout") if 0 in case.batches else returned(case))
    subject = Subject(spec="fake:Subject", label="fake:Subject", promise=promise)
    run({"ending": lambda case: 0 in case.batches}, ranks=ranks, subject=subject, cases=100)
    assert set(ranks.timeouts) == {60.0, 60.0 * SHORT_SHARE}


def test_the_time_of_a_case_is_that_of_its_slowest_rank_without_compilations() -> None:
    def behave(case: Case) -> Observation:
        times = {"seconds": 7.0, "compiled": 2, "compile_seconds": 4.0}
        first, *rest = returned(case).ranks
        return Observation(ranks=(msgspec.structs.replace(first, **times), *rest))

    heard = Heard()
    result = run({"forward": lambda case: False}, ranks=FakeRanks(behave), cases=20, heard=heard)
    assert result.pace == Pace(case_seconds=3.0, compiled=40, compile_seconds=80.0)
    assert heard.of(CaseEnded)[2].pace == Pace(case_seconds=3.0, compiled=6, compile_seconds=12.0)


def test_a_failure_that_does_not_repeat_is_told_as_such() -> None:
    seen: dict[str, int] = {}

    def rule(case: Case) -> bool:
        seen[case.id] = seen.get(case.id, 0) + 1
        return case.channels > 2 and seen[case.id] == 1

    result = run({"forward": rule}, cases=20)
    assert result.verdict == "VIOLATED"
    assert not result.failures[0].repeats
    assert "comes and goes" in result.failures[0].text


KNOWN = """
[[known]]
id = "empty"
reason = "An empty rank."
case = '{"batches":[2,0]}'
when = [{fact = "empty_ranks", at_least = 1}]
properties = ["ending", "collectives"]
endings = ["died"]
"""


KNOWN_CASE = Case(batches=(2, 0))


def known_subject() -> Subject:
    return Subject(spec="fake:Subject", label="fake:Subject", known=parse(KNOWN))


def test_a_known_discrepancy_excuses_and_is_seen() -> None:
    result = run({"collectives": lambda case: 0 in case.batches}, subject=known_subject())
    assert result.verdict != "VIOLATED"
    assert result.known[0].state == "seen"
    assert result.known[0].excused >= 1
    assert not result.failures


def test_a_known_discrepancy_that_nothing_shows_is_stale() -> None:
    result = run({"collectives": lambda case: False}, subject=known_subject())
    assert result.known[0].state == "stale"


@pytest.mark.parametrize(("narrowed", "state"), [({"empty"}, "not exercised"), (set(), "seen")])
def test_a_stored_case_outside_the_domain_runs_unless_the_command_line_excludes_it(
    narrowed: set[str], state: str
) -> None:
    result = run(
        {"collectives": lambda case: 0 in case.batches, "purity": lambda case: 0 in case.batches},
        subject=dataclasses.replace(known_subject(), narrowed=frozenset(narrowed)),
        objections=lambda domain, case: ("empty",) if case == KNOWN_CASE else (),
        cases=3,
        strategy=lambda domain: st.builds(Case, batches=st.tuples(st.integers(1, 9))),
    )
    assert result.known[0].state == state
    assert KNOWN_CASE.id not in {failure.case.id for failure in result.failures}


def test_of_cases_that_a_known_discrepancy_kills_few_are_run_and_the_rest_counted() -> None:
    ranks = FakeRanks()
    result = run({"ending": lambda case: False}, subject=known_subject(), ranks=ranks, cases=100)
    ran = sum(0 in case.batches for case in ranks.cases)
    assert ran <= MAX_DEADLY_RUNS + 1  # and its stored case
    assert result.accounting.skipped > 10
    assert result.known[0].skipped == result.accounting.skipped


def test_what_a_known_discrepancy_does_not_cover_is_violated_as_ever() -> None:
    result = run({"grad_input": lambda case: 0 in case.batches}, subject=known_subject())
    assert [failure.property for failure in result.failures] == ["grad_input"]


def test_every_event_is_strict_json() -> None:
    heard = Heard()
    run({"forward": lambda case: case.channels > 5}, heard=heard)
    assert isinstance(heard[0], CampaignStarted)
    assert isinstance(heard[-1], CampaignEnded)
    assert all(f'"event":"{type(event).__name__}"' in to_json(event) for event in heard)


def test_a_looser_grade_that_holds_is_told() -> None:
    def judge(case: Case, observation: Any, expected: Any, contract: Any, *, only: Any) -> Any:
        from tests.verify.fakes import judge_by

        rules = {"forward": lambda case: expected.grade == "A" and case.channels > 3}
        return judge_by(rules)(case, observation, expected, contract, only=only)

    result = run({}, judge=judge)
    assert result.verdict == "VIOLATED"
    assert result.grade == {"float32": "B"}
    assert "satisfies grade B" in result.failures[0].text


@pytest.mark.parametrize(
    ("cases", "seconds", "budget"),
    [
        (None, None, Budget(cases=500, net=SAFETY_NET)),
        (5, None, Budget(cases=5, seconds=None)),
        (None, 2.0, Budget(cases=None, seconds=2.0)),
        (5, 2.0, Budget(cases=5, seconds=2.0)),
    ],
)
def test_a_limit_that_is_given_alone_is_the_whole_budget(
    cases: int | None, seconds: float | None, budget: Budget
) -> None:
    assert Budget.of(cases, seconds) == budget


def test_derived_seeds_differ_by_path() -> None:
    seeds = {derive(seed, *path) for seed in range(20) for path in ((), (0,), (1,), (0, 1))}
    assert len(seeds) == 80


def test_a_campaign_ends_once_every_property_that_it_looks_for_is_violated() -> None:
    rules = {
        "forward": lambda case: case.channels > 3,
        "grad_input": lambda case: len(case.batches) > 1,
        "purity": lambda case: False,
    }
    until = Policy(stop_after_violating=frozenset({"forward", "grad_input"}))
    result = run(rules, policy=until)
    assert result.accounting.cases < 20
    assert result.properties["forward"].violated
    assert result.properties["grad_input"].violated
    assert result.stopped == "every property that was looked for is violated"


def test_a_campaign_that_misses_a_property_that_it_looks_for_draws_to_the_end() -> None:
    rules = {"forward": lambda case: case.channels > 3, "purity": lambda case: False}
    result = run(rules, policy=Policy(stop_after_violating=frozenset({"forward", "purity"})))
    assert result.accounting.cases == 60
    assert result.stopped == ""


def test_of_a_case_that_violates_several_properties_one_that_is_looked_for_is_minimised() -> None:
    heard = Heard()
    rules = {"forward": lambda case: True, "grad_input": lambda case: True}
    run(rules, policy=Policy(stop_after_violating=frozenset({"grad_input"})), heard=heard)
    assert [event.property for event in heard.of(FailureFound)] == ["grad_input"]


def raising(case: Case, *, line: int) -> Observation:
    kind = "TypeError" if line % 2 else "KeyError"
    where = (
        f'Traceback\n  File "/a/mine.py", line {line}, in forward\n  File "/x/torch/nn.py", line 1, in f\n'
    )
    return ended(case, "raised", raised=Raised(kind, "no", "forward 0", where))


def test_each_exception_is_told_with_the_cases_that_showed_it() -> None:
    ranks = FakeRanks(lambda case: raising(case, line=3 if case.channels > 4 else 8))
    result = run({"ending": lambda case: case.channels > 1}, ranks=ranks)
    told = {failure.case.channels: failure for failure in result.failures}
    assert sorted(told) == [2, 5], "both are minimised, each with its own exception"
    assert sum(failure.cases for failure in result.failures) == result.properties["ending"].violated
    assert all(failure.cases for failure in result.failures)


def test_a_subject_that_raises_in_very_many_ways_is_told_a_few() -> None:
    ranks = FakeRanks(lambda case: raising(case, line=case.channels))
    rules = {"ending": lambda case: True, "forward": lambda case: case.channels > 3}
    result = run(rules, ranks=ranks)
    raised = [failure for failure in result.failures if failure.property == "ending"]
    assert len(raised) == MAX_EXCEPTIONS
    assert any(failure.property == "forward" for failure in result.failures), "others are told all the same"

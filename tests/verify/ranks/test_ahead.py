"""A case sent ahead is run after the one before it, is judged by its own data, and costs that one nothing."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from properties.case import Case, Step
from properties.observation import Observation
from properties.values.elements import digest, tensors
from verify.ranks.pool import RankPool
from verify.ranks.shared_tensors import PARTS
from verify.ranks.submission import Ticket
from verify.ranks.worker.barrier import Barrier

HERE = Path(__file__).parent
CASE = Case(batches=(3, 2), channels=5, spatial=((2, 3),), random_parameters=True, seed=7)


def spec(name: str) -> str:
    return f"{HERE / 'subjects.py'}:{name}"


def case(seed: int, **more: object) -> Case:
    return msgspec.structs.replace(CASE, seed=seed, **more)


def drew(seen, drawn: Case) -> bool:
    """Whether every rank ran on the data of `drawn`."""
    return [ours.digest for ours in seen.ranks] == [
        digest(*tensors(drawn, rank, step=0)) for rank in range(drawn.world_size)
    ]


@pytest.fixture(scope="module")
def pool():
    with RankPool(timeout=2.0, warm_up=0.0) as pool:
        yield pool


DEPTHS = (2, *(pytest.param(depth, marks=pytest.mark.costly) for depth in (3, PARTS)))


def flown(pool, subject: str, cases: list[Case], depth: int) -> Iterator[Observation]:
    """Yield the cases' observations, in order, while up to `depth` of them are in flight."""
    tickets: deque[Ticket] = deque()
    for one in cases:
        tickets.append(pool.submit(subject, one))
        if len(tickets) == depth:
            yield tickets.popleft().result()
    for ticket in tickets:
        yield ticket.result()


@pytest.mark.parametrize("depth", DEPTHS)
def test_observations_come_in_the_order_of_submission(pool, depth):
    cases = [case(seed) for seed in range(1, 20)]
    pool.run(spec("Synced"), CASE)
    for one, seen in zip(cases, flown(pool, spec("Synced"), cases, depth), strict=True):
        assert drew(seen, one)


def test_the_ranks_go_on_while_the_parent_does_not(pool, gate):
    gate.open()
    first, second = (pool.submit(spec("Waits"), case(seed)) for seed in (1, 2))
    gate.wait_for(2, ranks=2)
    assert drew(first.result(), case(1))
    assert drew(second.result(), case(2))


def test_the_first_is_waited_for_where_no_more_may_be_in_flight(pool):
    tickets = [pool.submit(spec("Synced"), case(seed)) for seed in range(1, PARTS + 2)]
    assert tickets[0].outcome is not None
    assert tickets[-1].outcome is None
    assert drew(pool.run(spec("Synced"), case(21)), case(21))
    for seed, ticket in enumerate(tickets, 1):
        assert drew(ticket.result(), case(seed))


def test_the_last_ticket_may_be_asked_first(pool):
    tickets = [pool.submit(spec("Synced"), case(seed)) for seed in (1, 2, 3)]
    for seed, ticket in reversed(list(enumerate(tickets, 1))):
        assert drew(ticket.result(), case(seed))
        assert ticket.result() is ticket.result()


def test_beside_a_large_case_flies_one_other(pool, monkeypatch):
    monkeypatch.setattr("verify.ranks.pool.MOST_AHEAD", 1000)
    large = case(2, batches=(40, 2))
    first = pool.submit(spec("Synced"), case(1))
    assert pool.most_in_flight == PARTS
    second = pool.submit(spec("Synced"), large)
    assert pool.most_in_flight == 2
    third = pool.submit(spec("Synced"), case(3))
    assert first.outcome is not None
    assert drew(second.result(), large)
    assert pool.most_in_flight == PARTS
    assert drew(third.result(), case(3))


@pytest.mark.parametrize("depth", DEPTHS)
def test_after_a_refused_case_the_next_is_run_all_the_same(pool, depth):
    cases = [case(seed) for seed in range(1, 8)]
    pool.run(spec("RefusesEverywhere"), CASE)
    for one, seen in zip(cases, flown(pool, spec("RefusesEverywhere"), cases, depth), strict=True):
        assert [ours.ending for ours in seen.ranks] == ["raised", "raised"]
        assert drew(seen, one)


@pytest.mark.parametrize("depth", DEPTHS)
def test_after_a_single_refused_case_all_go_on(pool, depth):
    wrong = case(3, wrong="integer")
    order = [case(1), case(2), wrong, case(4), wrong, wrong, case(7), case(8), case(9)]
    pool.run("aggregated", CASE)
    for now, seen in zip(order, flown(pool, "aggregated", order, depth), strict=True):
        assert {ours.ending for ours in seen.ranks} == {"raised" if now.wrong else "returned"}
        assert drew(seen, now)


def test_a_rank_that_raised_does_not_answer_its_peer_with_the_next_case(pool):
    pool.run(spec("RaisesOnRankOne"), CASE)
    pool.run(spec("RaisesOnRankOne"), CASE)  # a group that the first has not cost
    for ticket in [pool.submit(spec("RaisesOnRankOne"), case(seed)) for seed in (1, 2)]:
        assert [ours.ending for ours in ticket.result().ranks] == ["stopped", "raised"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_cases_whose_group_is_lost_before_their_turn_are_run_by_another(pool, depth):
    cases = [case(1, batches=(3, 0)), *(case(seed) for seed in range(2, 6))]
    pool.run(spec("HangsOnEmpty"), CASE)
    lost, *others = flown(pool, spec("HangsOnEmpty"), cases, depth)
    assert "timeout" in {ours.ending for ours in lost.ranks}
    for one, seen in zip(cases[1:], others, strict=True):
        assert {ours.ending for ours in seen.ranks} == {"returned"}
        assert drew(seen, one)


def test_a_case_that_recomputes_gets_ranks_that_are_ready_for_it():
    again = case(2, steps=(Step(recompute=True),))
    cases = [case(1), again, case(3), again, case(4, batches=(2, 1, 1)), case(5)]
    with RankPool(timeout=10.0, warm_up=0.0) as fresh:
        fresh.run(spec("Synced"), CASE)
        (first,) = fresh.groups.open.values()
        for one, seen in zip(cases, flown(fresh, spec("Synced"), cases, 4), strict=True):
            assert drew(seen, one)
        assert not first.dynamo
        assert first not in fresh.groups.open.values()
        assert all(group.dynamo for group in fresh.groups.open.values())


def test_cases_of_different_world_sizes_may_fly_together(pool):
    small = case(3, batches=(4,))
    pool.run(spec("Synced"), small)
    pool.run(spec("Synced"), CASE)
    first, second = pool.submit(spec("Synced"), small), pool.submit(spec("Synced"), case(4))
    assert drew(first.result(), small)
    assert drew(second.result(), case(4))


def gates(folder: Path, number: int) -> list[Barrier]:
    return [Barrier(folder / "barrier", rank=rank, world_size=number) for rank in range(number)]


def test_a_gate_opens_once_all_have_ended_well(tmp_path):
    one, other = gates(tmp_path, 2)
    one.tell(1, well=True)
    passed: list[bool] = []
    waiting = threading.Thread(target=lambda: passed.append(one.passes(1)))
    waiting.start()
    time.sleep(0.05)
    assert not passed
    other.tell(1, well=True)
    waiting.join(5)
    assert passed == [True]


def test_a_gate_stays_closed_after_a_failure_of_any(tmp_path):
    one, other = gates(tmp_path, 2)
    one.tell(1, well=True)
    other.tell(1, well=False)
    assert not one.passes(1)
    assert not other.passes(1)


def test_who_is_further_on_has_passed(tmp_path):
    one, other = gates(tmp_path, 2)
    one.tell(1, well=True)
    other.tell(2, well=False)
    assert one.passes(1)


def told(seen) -> list[tuple[str, set[str]]]:
    """How the case ended on each rank, with the tensors it gave back; a waiting rank is stopped or aborts."""
    return [(ours.ending.replace("died", "stopped"), set(ours.tensors)) for ours in seen.ranks]


@pytest.mark.parametrize("depth", DEPTHS)
def test_whatever_ends_badly_costs_no_other_case_its_verdict(pool, depth):
    source = random.Random(3)
    cases = [case(seed, batches=(2,) * source.choice((2, 3, 4))) for seed in range(60)]
    alone = [pool.run(spec("Moody"), one) for one in cases]
    together = flown(pool, spec("Moody"), cases, depth)
    for one, by_itself, seen in zip(cases, alone, together, strict=True):
        assert told(seen) == told(by_itself)
        assert all(ours.ending != "returned" or drew(seen, one) for ours in seen.ranks)
    assert {ending for seen in alone for ending, _ in told(seen)} == {"returned", "raised", "stopped"}

"""A rank or the server killed by SIGKILL, between any two messages: the case is judged all the same."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from catalogue import HARMLESS, HERE, hostile_case

from properties.observation import Observation
from verify.errors import RankError
from verify.ranks.group import RankGroup
from verify.ranks.pool import LostGroup, RankPool

RIGHT = f"{HERE / 'hangs.py'}:InForward"
DYING = f"{HERE / 'deaths.py'}:KillsItsPeer"
Kill = Callable[[RankPool, RankGroup], None]


@pytest.fixture
def losses() -> list[LostGroup]:
    return []


@pytest.fixture
def pool(losses: list[LostGroup]) -> Iterator[RankPool]:
    with RankPool(timeout=10.0, on_lost=losses.append) as pool:
        yield pool


def kill_a_rank(pool: RankPool, group: RankGroup) -> None:
    os.kill(group.pids[-1], signal.SIGKILL)


def kill_all_ranks(pool: RankPool, group: RankGroup) -> None:
    for pid in group.pids:
        os.kill(pid, signal.SIGKILL)


def kill_the_server(pool: RankPool, group: RankGroup) -> None:
    assert pool.groups.client is not None
    os.kill(pool.groups.client._process.pid, signal.SIGKILL)


def only_group(pool: RankPool) -> RankGroup:
    (group,) = pool.groups.open.values()
    return group


def before_it_joins(pool: RankPool, kill: Kill) -> Observation:
    ticket = pool.submit(RIGHT, HARMLESS)
    group = only_group(pool)
    group._processes.await_pids()
    kill(pool, group)
    return ticket.result()


def before_it_loads(pool: RankPool, kill: Kill) -> Observation:
    ticket = pool.submit(RIGHT, HARMLESS)
    group = only_group(pool)
    group._processes.await_pids()
    while not group._ranks[0].answers:
        group._collector.poll(0.1)
    kill(pool, group)
    return ticket.result()


def before_it_is_asked(pool: RankPool, kill: Kill) -> Observation:
    pool.run(RIGHT, HARMLESS)
    kill(pool, only_group(pool))
    return pool.run(RIGHT, HARMLESS)


def as_it_is_asked(pool: RankPool, kill: Kill) -> Observation:
    pool.run(RIGHT, HARMLESS)
    ticket = pool.submit(RIGHT, HARMLESS)
    kill(pool, only_group(pool))
    return ticket.result()


def after_it_answered(pool: RankPool, kill: Kill) -> Observation:
    pool.run(RIGHT, HARMLESS)
    ticket = pool.submit(RIGHT, HARMLESS)
    time.sleep(1.0)
    kill(pool, only_group(pool))
    return ticket.result()


def between_cases_in_flight(pool: RankPool, kill: Kill) -> Observation:
    pool.run(RIGHT, HARMLESS)
    *tickets, last = [pool.submit(RIGHT, HARMLESS) for _ in range(pool.most_in_flight)]
    time.sleep(0.05)
    kill(pool, only_group(pool))
    for ticket in tickets:
        assert {seen.ending for seen in ticket.result().ranks} == {"returned"}
    return last.result()


MOMENTS = (
    before_it_joins,
    before_it_loads,
    before_it_is_asked,
    as_it_is_asked,
    after_it_answered,
    between_cases_in_flight,
)


def bits(seen: Observation) -> list[dict[str, bytes]]:
    return [{name: one.array.tobytes() for name, one in rank.tensors.items()} for rank in seen.ranks]


@pytest.mark.timeout(120)
@pytest.mark.costly
@pytest.mark.parametrize("kill", [kill_a_rank, kill_all_ranks, kill_the_server], ids=lambda one: one.__name__)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda one: one.__name__)
def test_a_case_survives_that_its_ranks_are_killed(
    pool: RankPool, losses: list[LostGroup], moment: Callable[..., Observation], kill: Kill
) -> None:
    seen = moment(pool, kill)
    assert [rank.ending for rank in seen.ranks] == ["returned", "returned"]
    time.sleep(1.0)  # a server takes its time to die
    assert bits(pool.run(RIGHT, HARMLESS)) == bits(seen)
    assert len(losses) == 1
    assert all(not Path(f"/proc/{pid}").exists() for group in losses for pid in group.pids)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "moment",
    [before_it_joins, pytest.param(before_it_loads, marks=pytest.mark.costly)],
    ids=lambda one: one.__name__,
)
def test_a_group_whose_rank_was_killed_on_its_way_is_told_as_dead(
    pool: RankPool, losses: list[LostGroup], moment: Callable[..., Observation]
) -> None:
    moment(pool, kill_a_rank)
    assert [loss.reason for loss in losses] == ["died"]


@pytest.mark.parametrize(
    "kill",
    [kill_a_rank, pytest.param(kill_the_server, marks=pytest.mark.costly)],
    ids=lambda one: one.__name__,
)
def test_a_subject_is_described_though_its_rank_is_killed(
    pool: RankPool, kill: Kill, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, killed = RankGroup.describe, []

    def deadly(group: RankGroup) -> object:
        if not killed:
            killed.append(group)
            group._processes.await_pids()
            kill(pool, group)
        return describe(group)

    monkeypatch.setattr(RankGroup, "describe", deadly)
    assert pool.describe(RIGHT).name == "hangs.py:InForward"
    assert killed


@pytest.mark.timeout(120)
def test_a_subject_that_kills_is_run_once_more_and_no_more(pool: RankPool, losses: list[LostGroup]) -> None:
    seen = pool.run(DYING, hostile_case())
    assert seen.ranks[1].exit == "signal SIGKILL"
    assert [loss.reason for loss in losses] == ["died", "died"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("large", [False, True])
def test_a_large_case_that_the_kernel_has_no_memory_for_is_no_verdict(
    pool: RankPool, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    kills = iter(range(10))
    monkeypatch.setattr("verify.ranks.pool.kills_for_memory", lambda: next(kills))
    case = msgspec.structs.replace(hostile_case(), batches=(2, 1 << 18)) if large else hostile_case()
    if large:
        with pytest.raises(RankError, match=r"Expected memory for the .* elements of case .*sizes=small"):
            pool.run(DYING, case)
    else:
        assert pool.run(DYING, case).ranks[1].exit == "signal SIGKILL"


@pytest.mark.timeout(120)
@pytest.mark.costly
def test_a_server_that_is_killed_again_and_again_is_our_failure(
    pool: RankPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = RankGroup.submit

    def deadly(group: RankGroup, *case: Any, **options: Any) -> None:
        assert pool.groups.client is not None
        kill_the_server(pool, group)
        pool.groups.client._process.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in group.pids):
            time.sleep(0.01)
        with contextlib.suppress(RankError):
            submit(group, *case, **options)

    pool.run(RIGHT, HARMLESS)
    monkeypatch.setattr(RankGroup, "submit", deadly)
    with pytest.raises(RankError):
        pool.run(RIGHT, HARMLESS)
    monkeypatch.undo()
    assert {seen.ending for seen in pool.run(RIGHT, HARMLESS).ranks} == {"returned"}


@pytest.mark.parametrize(
    "kill",
    [
        kill_a_rank,
        *(pytest.param(kill, marks=pytest.mark.costly) for kill in (kill_all_ranks, kill_the_server)),
    ],
)
def test_a_kill_before_the_next_case_is_sent_ahead_swaps_no_cases(pool: RankPool, kill: Kill) -> None:
    first, following = (msgspec.structs.replace(HARMLESS, seed=seed) for seed in (5, 6))
    alone = [pool.run(RIGHT, one).ranks[0].digest for one in (first, following)]
    tickets = [pool.submit(RIGHT, first)]
    kill(pool, only_group(pool))
    time.sleep(0.2)
    tickets.append(pool.submit(RIGHT, following))
    assert [ticket.result().ranks[0].digest for ticket in tickets] == alone

"""Limits: what a machine's slowness and a queue for a core add to them, and what they never forgive."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from properties.case import Case
from verify.ranks import speed
from verify.ranks.limit import MOST, Limit, Queues
from verify.ranks.pool import RankPool

LOOP = (sys.executable, "-c", "while True: pass")
CASE = Case(batches=(3, 2), channels=5, seed=7)


class Clock:
    """Seconds, and what two processes have waited, as a test sets them."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited = [3.0, 5.0]

    def __call__(self) -> float:
        return self.now

    def queues(self) -> list[float]:
        return list(self.waited)


def limit(clock: Clock, seconds: float = 2.0) -> Limit:
    return Limit(seconds, clock.queues, clock=clock)


def test_a_limit_without_a_queue_ends_when_its_seconds_are_over() -> None:
    clock = Clock()
    ours = limit(clock)
    clock.now += 1.5
    assert ours.left() == 0.5
    clock.now += 0.5
    assert ours.left() == 0.0
    assert not ours.extended


def test_the_longest_wait_for_a_core_is_added_when_the_seconds_are_over() -> None:
    clock = Clock()
    ours = limit(clock)
    clock.now += 2.0
    clock.waited = [3.2, 6.0]
    assert ours.left() == pytest.approx(1.0)
    assert ours.extended
    clock.now += 1.0
    assert ours.left() == 0.0, "no more was waited since"


def test_a_wait_that_goes_on_extends_again_and_a_busy_loop_on_half_a_core_gets_twice_the_time() -> None:
    clock = Clock()
    ours, rounds = limit(clock), 0
    while left := ours.left():
        clock.now += left
        clock.waited = [3.0, 5.0 + (clock.now - 100.0) / 2]
        rounds += 1
    assert clock.now - 100.0 == pytest.approx(4.0, abs=0.05)
    assert rounds < 20


def test_no_wait_extends_a_limit_for_ever() -> None:
    clock = Clock()
    ours = limit(clock)
    while left := ours.left():
        clock.now += left
        clock.waited = [clock.now, clock.now]
    assert clock.now - 100.0 == pytest.approx(MOST * 2.0, abs=0.05)


def test_a_process_that_is_gone_has_not_waited() -> None:
    clock = Clock()
    ours = limit(clock)
    clock.now += 2.0
    clock.waited = [0.0, 0.0]
    assert ours.left() == 0.0


@contextlib.contextmanager
def processes(command: tuple[str, ...], count: int) -> Iterator[list[int]]:
    started = [subprocess.Popen(command) for _ in range(count)]
    time.sleep(0.1)
    try:
        yield [one.pid for one in started]
    finally:
        for one in started:
            one.kill()
            one.wait()


@pytest.mark.skipif(not os.access("/proc/self/schedstat", os.R_OK), reason="needs /proc/PID/schedstat")
def test_a_crowd_of_busy_loops_waits_for_a_core_and_a_sleeper_does_not() -> None:
    cores = len(os.sched_getaffinity(0))
    with processes(("sleep", "60"), 1) as idle, processes(LOOP, 3 * cores) as busy:
        time.sleep(0.3)
        loops, sleeper = Queues(busy), Queues(idle)
        crowded, alone = Limit(0.5, loops.waited), Limit(0.5, sleeper.waited)
        time.sleep(0.6)
        assert crowded.left() > 0.05
        assert crowded.extended
        assert alone.left() == 0.0
    assert set(loops.waited()) == {0.0}, "they are gone"
    loops.close()
    sleeper.close()
    assert loops.waited() == []


@pytest.mark.skipif(not os.access("/proc/self/schedstat", os.R_OK), reason="needs /proc/PID/schedstat")
def test_a_case_that_waits_for_a_core_is_no_hang() -> None:
    subjects = Path(__file__).parent / "subjects.py"
    with RankPool(timeout=5.0, warm_up=0.0) as pool:
        assert pool.run(f"{subjects}:Works", CASE).ranks[0].ending == "returned"
        pool.timeout = 0.6
        with processes(LOOP, 6 * len(os.sched_getaffinity(0))):
            started = time.monotonic()
            worked = pool.run(f"{subjects}:Works", CASE)
            took = time.monotonic() - started
        assert [ours.ending for ours in worked.ranks] == ["returned", "returned"]
        assert took > pool.timeout, "its half second of work was to take longer than its limit"


def test_a_slow_machine_is_told_by_the_best_of_three_and_within_bounds() -> None:
    times = iter([0.0, 9.0, 10.0, 10.0 + 3 * speed.NOMINAL_SECONDS, 20.0, 21.0])
    assert speed.slowness(work=lambda: None, clock=lambda: next(times)) == pytest.approx(3.0)
    assert speed.slowness(work=lambda: None) == 1.0
    ticks = iter(range(100))
    assert speed.slowness(work=lambda: None, clock=lambda: float(next(ticks))) == speed.MOST


def test_the_work_that_is_measured_takes_cpu_time() -> None:
    started = time.thread_time()
    speed.slowness()
    assert time.thread_time() - started > 0.001

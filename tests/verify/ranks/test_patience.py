"""Patience: what is slow, what compiles and what hangs, by looks and CPU times as a test sets them."""

from __future__ import annotations

import os

import pytest

from verify.ranks.messages import Seen
from verify.ranks.patience import LOOKS_A_LIMIT, MOST, CpuTimes, Late, Patience

LIMIT = 8.0


class Machine:
    """A clock and two ranks, of which each works for a share of the time and waits for a core for another."""

    def __init__(self, *shares: float, queued: float = 0.0) -> None:
        self.now = 50.0
        self._shares, self._queued = shares or (1.0, 0.0), queued
        self._looks = 0

    def __call__(self) -> float:
        return self.now

    def cpu(self) -> list[float]:
        return [share * self.now for share in self._shares]

    def waited(self) -> list[float]:
        return [self._queued * self.now for _ in self._shares]

    def patience(self) -> Patience:
        return Patience(
            seconds=LIMIT, compile_seconds=100.0, cpu=self.cpu, waited=self.waited, clock=self.__call__
        )

    def look(self, state: str | None, *, compiling: bool = False) -> Seen | None:
        """Return what a look shows; `new` stands for a state that never was."""
        self._looks += 1
        if state is None:
            return None
        state = f"{self._looks}" if state == "new" else state
        return Seen(number=self._looks, state=state, stack="", compiling=compiling)


def end(machine: Machine, *states: str | None, compiling: int = 0) -> tuple[Late, float]:
    """Return how ranks that show these states for ever end, and how many limits after their beginning."""
    patience, late, since = machine.patience(), "", machine.now
    for number in range(2000):
        looks = {k: machine.look(state, compiling=number < compiling) for k, state in enumerate(states)}
        if late := patience.late(looks):
            break
        machine.now += patience.pause
    return late, 1.0 + (machine.now - since) / LIMIT


def test_ranks_that_wait_hang_a_quarter_of_the_limit_after_its_end() -> None:
    assert end(Machine(0.0, 0.02), "here", "there") == ("timeout", 1.0 + 1.0 / LOOKS_A_LIMIT)


def test_states_that_are_new_say_nothing_of_ranks_that_wait() -> None:
    assert end(Machine(0.0, 0.02), "new", "new") == ("timeout", 1.0 + 1.0 / LOOKS_A_LIMIT)


@pytest.mark.parametrize("state", ["here", None])
def test_a_rank_that_works_where_it_was_spins_and_hangs_after_one_more_limit(state: str | None) -> None:
    assert end(Machine(1.0, 0.0), state, "there") == ("timeout", 2.0)


def test_a_rank_that_goes_through_a_few_states_again_and_again_hangs_a_little_later() -> None:
    machine = Machine(1.0)
    patience, late = machine.patience(), ""
    for number in range(200):
        if late := patience.late({0: machine.look("abc"[number % 3])}):
            break
        machine.now += patience.pause
    assert late == "timeout"
    assert machine.now - 50.0 == pytest.approx((2 / LOOKS_A_LIMIT + 1.0) * LIMIT)


def test_a_rank_that_gets_on_is_slow_in_the_end_though_its_peer_waits() -> None:
    assert end(Machine(0.9, 0.0), "new", "there") == ("slow", MOST)


def test_new_states_of_a_rank_that_waits_do_not_help_one_that_spins() -> None:
    assert end(Machine(1.0, 0.0), "here", "new")[0] == "timeout"


def test_a_rank_without_a_core_is_measured_by_the_time_in_which_it_could_run() -> None:
    assert end(Machine(0.05, queued=0.0), "new")[0] == "timeout"
    assert end(Machine(0.05, queued=0.9), "new")[0] == "slow"


def test_what_a_rank_waits_for_a_core_is_no_time_of_the_case() -> None:
    assert end(Machine(0.5, queued=0.5), "new") == ("slow", 1.0 + 2 * (MOST - 1.0))


def test_a_compilation_has_its_own_limit_and_costs_the_case_nothing() -> None:
    assert end(Machine(0.0, 0.0), "here", "there", compiling=10_000) == ("slow", 1.0 + 100.0 / LIMIT)
    late, limits = end(Machine(1.0), "new", compiling=20)
    assert (late, limits) == ("slow", MOST + 19 / LOOKS_A_LIMIT)
    late, limits = end(Machine(0.0), "here", compiling=20)
    assert (late, limits) == ("timeout", 1.0 + 20 / LOOKS_A_LIMIT)


def test_a_rank_that_has_answered_is_not_asked_and_does_not_count() -> None:
    machine = Machine(0.0, 1.0)
    patience = machine.patience()
    assert patience.late({0: machine.look("here"), 1: machine.look("new")}) == ""
    machine.now += patience.pause
    assert patience.late({0: machine.look("here")}) == "timeout"


def test_the_cpu_time_of_a_process_grows_and_one_that_is_not_there_has_none() -> None:
    times = CpuTimes([os.getpid(), 2**22 + 1])
    before = times()
    while times()[0] < before[0] + 0.02:
        sum(range(10_000))
    assert times()[1] == 0.0
    times.close()
    assert times() == []

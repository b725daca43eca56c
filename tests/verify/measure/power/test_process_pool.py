"""A crew: units shared out, a worker that dies loses its unit only, and no process is left behind."""

from __future__ import annotations

import os
import sys

import pytest

from tests.verify.measure.power.samples import card, units
from verify.errors import RankError
from verify.measure.power.outcome import Broken, FaultOutcome
from verify.measure.power.process_pool import ProcessPool

WORKER = """
import json, os, signal, sys, time

def say(**message):
    sys.stdout.write(json.dumps(message) + "\\n")
    sys.stdout.flush()

say(outcome="ready")
for line in sys.stdin:
    unit = json.loads(line)
    name = unit["card"]["id"]
    if name == "dies":
        sys.stderr.write("last words")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "garbled":
        print("no json", flush=True)
        continue
    if name == "silent":
        time.sleep(60)
    if name == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    if name == "slow":
        for _ in range(4):
            time.sleep(0.5)
            say(outcome="beat")
    say(outcome="fault", fault=name, seed=unit["seed"], stopped=str(os.getpid()))
"""
COMMAND = (sys.executable, "-c", WORKER)


def done_by(crew, *names, seeds=1):
    made = units(*(card(name) for name in names), seeds=seeds)
    return {(done.unit.card.id, done.unit.seed): done.outcome for done in crew.work(made)}


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_every_unit_is_done_once_by_as_many_workers_as_there_may_be():
    with ProcessPool(2, command=COMMAND) as crew:
        found = done_by(crew, *"abcdefghij")
        workers = {outcome.stopped for outcome in found.values()}
    assert len(found) == 10
    assert all(isinstance(outcome, FaultOutcome) for outcome in found.values())
    assert 1 <= len(workers) <= 2
    assert all(gone(int(pid)) for pid in workers)


def test_a_worker_that_dies_loses_its_unit_only_and_is_replaced():
    with ProcessPool(1, command=COMMAND) as crew:
        found = done_by(crew, "a", "dies", "b")
    lost = found.pop(("dies", 1))
    assert isinstance(lost, Broken)
    assert "exit code -9" in lost.reason
    assert "last words" in lost.reason
    assert set(found) == {("a", 1), ("b", 1)}
    assert found["a", 1].stopped != found["b", 1].stopped


def test_a_worker_that_says_nothing_for_too_long_is_given_up():
    with ProcessPool(1, command=COMMAND, silence=1.0) as crew:
        found = done_by(crew, "silent", "slow")
    assert "nothing was heard of it for 1 s" in found["silent", 1].reason
    assert isinstance(found["slow", 1], FaultOutcome)


def test_workers_that_never_start_are_an_error_and_not_lost_units():
    with (
        ProcessPool(1, command=(sys.executable, "-c", "raise SystemExit('no such thing')")) as crew,
        pytest.raises(RankError, match=r"3 in a row did not.*exit code 1:\nno such thing"),
    ):
        done_by(crew, *"abcdef")


def test_a_message_that_cannot_be_read_loses_its_unit_only():
    with ProcessPool(1, command=COMMAND) as crew:
        found = done_by(crew, "garbled", "a")
    assert found["garbled", 1].reason.startswith("Expected a message of a worker, but got b'no json'")
    assert isinstance(found["a", 1], FaultOutcome)


def test_an_interrupt_leaves_no_worker_behind():
    def interrupted(crew):
        for done in crew.work(units(card("a"), card("silent"))):
            pids.append(int(done.outcome.stopped))
            raise KeyboardInterrupt

    pids = []
    with pytest.raises(KeyboardInterrupt), ProcessPool(1, command=COMMAND) as crew:
        interrupted(crew)
    assert gone(pids[0])

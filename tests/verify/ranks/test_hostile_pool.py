"""The pool on real gloo ranks: how hostile subjects end."""

from __future__ import annotations

import subprocess

import msgspec
import pytest

from tests.verify.ranks.real import CASE, exists, spec


def test_one_rank_that_raises_stops_the_others(pool, losses):
    first, other = pool.run(spec("RaisesOnRankOne"), CASE).ranks
    assert other.ending == "raised"
    assert (other.raised.type, other.raised.message) == ("ValueError", "not on this rank")
    assert "subjects.py" in other.raised.traceback
    assert "running.py" not in other.raised.traceback
    assert first.ending == "stopped"
    assert "all_reduce" in first.stack
    assert "running.py" not in first.stack
    assert [loss.reason for loss in losses] == ["stopped"]
    assert pool.run(spec("Local"), CASE).ranks[0].ending == "returned"


def test_a_rank_that_works_on_while_another_has_refused_comes_to_its_own_end(pool, losses):
    seen = pool.run(spec("RefusesLate"), CASE).ranks
    assert [ours.ending for ours in seen] == ["raised", "raised"]
    assert losses == []


def test_a_rank_that_works_for_ever_while_another_has_raised_has_an_end(pool, losses):
    first, other = pool.run(spec("WorksOnAlone"), CASE).ranks
    assert (first.ending, other.ending) == ("raised", "timeout")
    assert "subjects.py" in other.stack
    assert [loss.reason for loss in losses] == ["timeout"]


def test_a_rank_that_hangs_is_a_timeout_with_its_stack(pool, losses):
    case = msgspec.structs.replace(CASE, batches=(3, 0))
    first, other = pool.run(spec("HangsOnEmpty"), case).ranks
    assert (first.ending, other.ending) == ("timeout", "timeout")
    assert "subjects.py" in other.stack
    assert "all_reduce" in first.stack
    (loss,) = losses
    assert loss.reason == "timeout"
    assert len(loss.pids) == 2
    assert not any(exists(pid) for pid in loss.pids)


def test_a_rank_that_hangs_with_the_interpreter_locked_is_a_timeout_with_its_stack(pool):
    ours = pool.run(spec("HangsWithTheGil"), CASE).ranks[0]
    assert ours.ending == "timeout"
    assert "subjects.py" in ours.stack


def test_an_abort_in_backward_is_a_death_with_signal_stack_and_output(pool):
    first, other = pool.run(spec("AbortsInBackward"), CASE).ranks
    assert (first.ending, first.exit) == ("died", "signal SIGABRT")
    assert "in backward" in first.stack
    assert "going down" in first.stack
    assert other.ending == "stopped"


@pytest.mark.parametrize(
    ("momentum", "ending", "what"),
    [
        (0.0, "raised", "SystemExit"),
        (1.0, "died", "exit code 3"),
        (0.5, "raised", "KeyboardInterrupt"),
        (0.25, "died", "signal SIGSEGV"),
    ],
)
def test_every_way_to_leave_is_an_ending(pool, momentum, ending, what):
    ours = pool.run(spec("Exits"), msgspec.structs.replace(CASE, momentum=momentum)).ranks[0]
    assert ours.ending == ending
    assert (ours.raised.type if ours.raised else ours.exit) == what


def test_an_exception_whose_str_raises_is_still_told(pool):
    ours = pool.run(spec("Unspeakable"), CASE).ranks[0]
    assert ours.raised.type.endswith("_UnspeakableError")
    assert "RuntimeError" in ours.raised.message


def test_an_output_that_is_no_tensor_is_told(pool):
    ours = pool.run(spec("ReturnsATuple"), CASE).ranks[0]
    assert ours.raised.phase == "forward 0"
    assert ours.raised.message == "Expected a tensor, but the subject returned an object of type tuple."


def test_a_factory_that_returns_no_module_is_told(pool):
    ours = pool.run(spec("no_module"), CASE).ranks[0]
    assert (ours.raised.type, ours.raised.phase) == ("TypeError", "construct")
    assert "torch.nn.Module" in ours.raised.message


def test_children_of_a_rank_go_with_it_even_from_a_session_of_their_own(pool, tmp_path):
    seen = pool.run(spec("Daemon"), msgspec.structs.replace(CASE, momentum=None))
    assert seen.ranks[0].ending == "timeout"
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "time.sleep(601)" not in found


def test_mismatched_collectives_cost_the_group_but_not_the_case(pool, losses):
    seen = pool.run(spec("SendsWithoutReceiver"), CASE)
    assert [ours.ending for ours in seen.ranks] == ["returned", "returned"]
    assert [loss.reason for loss in losses] == ["collectives do not match"]

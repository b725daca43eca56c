"""Endings: exit codes in words, broken connections, and when a group may go on."""

from __future__ import annotations

import pytest

from properties.observation import Collective, Raised, RankObservation
from verify.ranks.endings import blames_a_lost_peer, exit_text, trim, unfit


def returned(rank, *ops, group=(0, 1), raised=None):
    ledger = tuple(Collective(op=op, phase="forward 0", group=group) for op in ops)
    return RankObservation(rank=rank, ending="raised" if raised else "returned", ledger=ledger, raised=raised)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-6, "signal SIGABRT"),
        (-200, "signal 200"),
        (None, "connection closed"),
    ],
)
def test_an_exit_code_in_words(code, text):
    assert exit_text(code) == text


@pytest.mark.parametrize(
    ("message", "blames"),
    [
        ("[pair.cc:534] Connection closed by peer [127.0.0.1]:4242", True),
        ("[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes", True),
        ("Expected more than 1 value per channel when training", False),
    ],
)
def test_an_exception_of_the_connection_is_not_the_ranks_own(message, blames):
    seen = returned(0, raised=Raised(type="RuntimeError", message=message, phase="forward 0"))
    assert blames_a_lost_peer(seen) is blames


def test_a_group_goes_on_after_matching_collectives_also_when_all_raised():
    own = Raised(type="ValueError", message="no", phase="forward 0")
    assert unfit([returned(0, "all_reduce"), returned(1, "all_reduce")]) == ""
    assert unfit([returned(0, raised=own), returned(1, raised=own)]) == ""


def test_a_group_does_not_go_on_after_collectives_that_do_not_match():
    assert unfit([returned(0, "all_reduce"), returned(1)]) == "collectives do not match"
    assert unfit([returned(0, "all_reduce"), returned(1, "all_gather")]) == "collectives do not match"


def test_each_process_group_is_compared_on_its_own():
    ranks = [returned(0, "all_reduce", group=(0,)), returned(1)]
    assert unfit(ranks) == ""


@pytest.mark.parametrize("ending", ["timeout", "died", "stopped"])
def test_a_group_does_not_go_on_after_an_abnormal_ending(ending):
    assert unfit([returned(0), RankObservation(rank=1, ending=ending)]) == ending


def test_the_cause_of_a_loss_is_told_before_its_consequences():
    ranks = [RankObservation(rank=0, ending="stopped"), RankObservation(rank=1, ending="died")]
    assert unfit(ranks) == "died"


def test_a_message_that_nobody_received_costs_the_group_if_a_rank_raised():
    own = Raised(type="ValueError", message="no", phase="forward 0")
    assert unfit([returned(0, "send"), returned(1, "recv")]) == ""
    assert unfit([returned(0, "send", raised=own), returned(1, raised=own)]) == "point-to-point operations"
    assert unfit([returned(0, raised=own), returned(1, "send")]) == "point-to-point operations"


def test_a_stack_is_told_without_our_own_frames():
    stack = """Thread 0x1 (most recent call first):
  File "/home/me/mine.py", line 3 in forward
  File "/site/verify/ranks/running.py", line 2 in run
  File "<string>", line 1 in <module>

Extension modules: numpy.core (total: 1)
"""
    expected = 'Thread 0x1 (most recent call first):\n  File "/home/me/mine.py", line 3 in forward'
    assert trim(stack, ours="/site/verify/ranks") == expected

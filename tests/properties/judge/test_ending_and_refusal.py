"""ending and refusal."""

import msgspec
import pytest

from properties.case import Step
from properties.judge.ending import innermost_frame, raised_at
from properties.judge.refusal import is_named
from properties.observation import Raised, RankObservation
from properties.verdict import Outcome

STACK = """Current thread 0x00007f (most recent call first):
  File "/site/torch/distributed/c10d.py", line 12 in all_reduce
  File "/home/me/mine.py", line 34 in forward
  File "/usr/lib/python3.11/threading.py", line 5 in run
"""


def raised(kind="RuntimeError", message="no", phase="forward 0", wraps=()):
    return {"ending": "raised", "raised": Raised(kind, message, phase, wraps=wraps), "tensors": {}}


def refusing(one, *ranks, kind="ValueError"):
    one.expected = msgspec.structs.replace(one.expected, refusals=dict.fromkeys(ranks, kind))
    return one


def test_every_way_to_end_is_reported_with_what_it_was(scene):
    one = scene(batches=(2, 2, 2, 2), groups=((0,), (1,), (2,), (3,)))
    one.change(0, **raised("mine.Error", "bad luck"))
    one.change(1, ending="timeout", stack=STACK)
    one.change(2, ending="died", exit="signal SIGABRT")
    verdict = one.verdicts()["ending"]
    assert [(d.ending, d.rank) for d in verdict.discrepancies] == [("died", 2), ("timeout", 1), ("raised", 0)]
    died, hung, threw = (d.message for d in verdict.discrepancies)
    assert "SIGABRT" in died
    assert "/home/me/mine.py:34 in forward" in hung
    assert "mine.Error in forward 0: bad luck" in threw


def test_of_a_message_of_many_lines_the_first_is_told(scene):
    one = scene(batches=(2, 2))
    for rank in (0, 1):
        one.change(rank, **raised(message="\nbad shape\n\nWhile executing %reshape\nOriginal traceback:\n"))
    (discrepancy,) = one.verdicts()["ending"].discrepancies
    assert discrepancy.message.endswith("raised RuntimeError in forward 0: bad shape [...]")


def test_a_case_that_took_too_long_decides_nothing_and_says_what_to_do(scene):
    one = scene(batches=(2, 2))
    for rank in (0, 1):
        one.change(rank, ending="slow", stack=STACK, tensors={})
    verdicts = one.verdicts()
    assert verdicts["ending"].outcome is Outcome.UNDECIDED
    assert "--case-seconds" in verdicts["ending"].reason
    assert not any(verdict.outcome is Outcome.VIOLATED for verdict in verdicts.values())


def test_a_refusal_that_took_too_long_is_not_one_that_was_missed(scene):
    one = refusing(scene(batches=(1, 0)), 0, 1)
    for rank in (0, 1):
        one.change(rank, ending="slow", tensors={})
    verdict = one.verdicts()["refusal"]
    assert verdict.outcome is Outcome.UNDECIDED
    assert "--case-seconds" in verdict.reason


def test_ranks_that_ended_alike_are_one_discrepancy(scene):
    one = scene(batches=(2, 2, 2))
    one.change(0, ending="timeout")
    one.change(2, ending="timeout")
    (found,) = one.verdicts()["ending"].discrepancies
    assert (found.mismatched_ranks, found.mismatched) == ((0, 2), 2)


def test_stopped_ranks_and_broken_connections_are_consequences(scene):
    one = scene(batches=(2, 2, 2))
    one.change(0, ending="died", exit="signal SIGABRT")
    one.change(1, **raised("RuntimeError", "[gloo/transport/tcp/pair.cc:547] Connection closed by peer"))
    one.change(2, ending="stopped")
    (found,) = one.verdicts()["ending"].discrepancies
    assert (found.rank, found.ending) == (0, "died")


def test_a_broken_connection_alone_is_reported(scene):
    one = scene(batches=(2, 2))
    one.change(1, **raised("RuntimeError", "Connection closed by peer"))
    assert one.violated() == {"ending"}


def test_stopped_ranks_alone_are_undecided(scene):
    one = scene(batches=(2, 2))
    for rank in (0, 1):
        one.change(rank, ending="stopped")
    assert one.outcomes()["ending"] == "UNDECIDED"


@pytest.mark.parametrize(
    ("endings", "wrong"),
    [
        (("returned", "returned"), False),
        (("RuntimeError", "RuntimeError"), False),
        (("RuntimeError", "ValueError"), True),
        (("RuntimeError", "returned"), True),
        (("RuntimeError", "stopped"), True),
        (("timeout", "timeout"), True),
        (("died", "stopped"), True),
    ],
)
def test_with_a_ragged_requires_grad_ranks_refuse_alike_or_not_at_all(scene, endings, wrong):
    one = scene(batches=(2, 2), input_grad=(True, False))
    one.spoil(0, "output.0", (0, 0), 9.0)
    for rank, how in enumerate(endings):
        if how.endswith("Error"):
            one.change(rank, **raised(how))
        else:
            one.change(rank, ending=how)
    assert set(one.verdicts()) == {"ending"}
    assert bool(one.violated()) is wrong


def test_a_refusal_alike_on_every_rank_holds_and_nothing_else_is_asked(scene):
    one = refusing(scene(batches=(1, 0)), 0, 1)
    for rank in (0, 1):
        one.change(rank, **raised("ValueError"))
    assert one.outcomes() == {"refusal": "HOLDS"}


@pytest.mark.parametrize(
    "change",
    [
        {"ending": "returned"},
        {"ending": "timeout"},
        {"ending": "died", "exit": "exit code 3"},
        {"ending": "stopped"},
        raised("TypeError"),
        raised("ValueError", phase="backward 0"),
    ],
)
def test_a_rank_that_does_not_refuse_like_its_peer_is_a_violation(scene, change):
    one = refusing(scene(batches=(1, 0)), 0, 1)
    one.change(0, **raised("ValueError"))
    one.change(1, **change)
    assert one.violated() == {"refusal"}
    assert 1 in {found.rank for found in one.verdicts()["refusal"].discrepancies}


def test_an_accepted_input_that_must_be_refused_violates_refusal_alone(scene):
    one = refusing(scene(batches=(1, 0)), 0, 1)
    one.expected.tensors.clear()
    assert one.violated() == {"refusal"}


def test_other_groups_are_judged_as_ever(scene):
    one = refusing(scene(batches=(1, 2, 2), groups=((0,), (1, 2))), 0)
    one.change(0, **raised("ValueError"))
    assert set(one.outcomes().values()) == {"HOLDS"}
    one.spoil(1, "output.0", (0, 0), 9.0)
    assert one.violated() == {"forward"}
    one.change(2, **raised("KeyError"))
    assert one.violated() == {"ending"}


@pytest.mark.parametrize(
    ("kind", "wraps", "refuses"),
    [
        ("torch._dynamo.exc.TorchRuntimeError", ("ValueError",), True),
        ("torch._dynamo.exc.Unsupported", ("torch._dynamo.exc.Observed", "Exception", "ValueError"), True),
        ("RuntimeError", ("mine.Wrong", "ValueError"), True),
        ("torch._dynamo.exc.TorchRuntimeError", ("KeyError",), False),
        ("torch._dynamo.exc.BackendCompilerFailed", ("triton.CompilationError", "Exception"), False),
        ("torch._dynamo.exc.TorchRuntimeError", (), False),
    ],
)
def test_a_refusal_counts_whatever_wraps_it(scene, kind, wraps, refuses):
    one = refusing(scene(batches=(1, 0)), 0, 1)
    for rank in (0, 1):
        one.change(rank, **raised(kind, wraps=wraps))
    assert (one.violated() == set()) is refuses


def test_different_types_of_the_same_family_are_unlike(scene):
    one = refusing(scene(batches=(1, 0)), 0, 1)
    one.change(0, **raised("ValueError"))
    one.change(1, **raised("UnicodeError"))
    assert one.violated() == {"refusal"}


@pytest.mark.parametrize(("batches", "alike"), [((1, 2), True), ((3, 2), False)])
def test_a_rank_with_one_value_may_refuse_a_wrong_input_for_that(scene, batches, alike):
    steps = (Step(mode="eval"),)
    one = refusing(scene(batches=batches, tracking=False, steps=steps, wrong="channels"), 0, 1, kind="")
    one.change(0, **raised("ValueError"))
    one.change(1, **raised("RuntimeError"))
    assert (one.violated() == set()) is alike


@pytest.mark.parametrize(
    ("kind", "wanted", "counts"),
    [
        ("ValueError", "ValueError", True),
        ("builtins.ValueError", "ValueError", True),
        ("UnicodeError", "ValueError", True),
        ("RuntimeError", "ValueError", False),
        ("RuntimeError", "", True),
        ("mine.ShapeError", "ValueError", True),
        ("torch.distributed.DistBackendError", "ValueError", False),
    ],
)
def test_a_type_counts_as_its_builtin_bases(kind, wanted, counts):
    assert is_named(kind, wanted) is counts


def test_the_innermost_frame_is_the_subjects_own_where_there_is_one():
    assert innermost_frame(STACK) == "/home/me/mine.py:34 in forward"
    assert innermost_frame('  File "/site/torch/x.py", line 1 in f\n') == "/site/torch/x.py:1 in f"
    assert innermost_frame("") == ""


@pytest.mark.parametrize(
    ("traceback", "place"),
    [
        ("", "forward"),
        ('  File "/home/me/mine.py", line 34, in forward\n    x\n', "mine.py:34"),
        (
            '  File "/a/mine.py", line 34, in forward\n  File "/a/kernels.py", line 7, in go\n'
            '  File "/x/site-packages/torch/nn/functional.py", line 2, in batch_norm\n',
            "kernels.py:7",
        ),
        ('  File "/x/torch/nn/functional.py", line 2, in batch_norm\n', "forward"),
    ],
)
def test_an_exception_is_told_by_its_type_and_the_innermost_line_that_is_the_subjects(traceback, place):
    seen = RankObservation(
        rank=0, ending="raised", raised=Raised("mine.Error", "no", "forward 2", traceback=traceback)
    )
    assert raised_at(seen) == f"mine.Error {place}"
    assert raised_at(RankObservation(rank=0, ending="died")) == ""

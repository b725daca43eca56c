"""eval_is_local and collectives."""

import pytest

from properties.case import Step
from properties.domain import Contract
from properties.observation import Collective

REDUCE = Collective("all_reduce", "forward 0", (0, 1), "sum", ("float32",), ((7,),), 28)


def ledger(scene, *ledgers, **fields):
    one = scene(batches=(2,) * len(ledgers), **fields)
    for rank, entries in enumerate(ledgers):
        one.change(rank, ledger=entries)
    return one


def test_equal_sequences_of_collectives_hold(scene):
    assert ledger(scene, (REDUCE, REDUCE), (REDUCE, REDUCE)).violated() == set()


@pytest.mark.parametrize(
    "other",
    [
        Collective("all_gather", "forward 0", (0, 1), "sum", ("float32",), ((7,),), 28),
        Collective("all_reduce", "forward 0", (0, 1), "avg", ("float32",), ((7,),), 28),
        Collective("all_reduce", "forward 0", (0, 1), "sum", ("float16",), ((7,),), 14),
        Collective("all_reduce", "forward 0", (0, 1), "sum", ("float32",), ((3,),), 12),
        Collective("all_reduce", "forward 0", (0,), "sum", ("float32",), ((7,),), 28),
    ],
)
def test_a_collective_of_another_kind_is_a_violation(scene, other):
    one = ledger(scene, (REDUCE, REDUCE), (REDUCE, other))
    assert one.violated() == {"collectives"}
    found = one.verdicts()["collectives"].discrepancies[0]
    assert (found.quantity, found.rank) == ("collective 1", 1)


@pytest.mark.parametrize("ledgers", [((REDUCE,), ()), ((), (REDUCE,))])
def test_a_collective_more_is_a_violation(scene, ledgers):
    found = ledger(scene, *ledgers).verdicts()["collectives"].discrepancies[0]
    assert "none" in (found.observed, found.expected)


def test_the_same_reduction_of_another_shape_holds(scene):
    flat = Collective("all_reduce", "forward 0", (0, 1), "sum", ("float32",), ((14,),), 56)
    square = Collective("all_reduce", "backward 0", (0, 1), "sum", ("float32",), ((2, 7),), 56)
    assert ledger(scene, (flat,), (square,)).violated() == set()


def test_uneven_gathers_and_messages_between_two_ranks_are_not_compared_in_size(scene):
    gathers = [Collective("allgather", "forward 0", (0, 1), "", ("float32",), ((n,),), 4 * n) for n in (3, 5)]
    send = Collective("send", "forward 0", (0, 1), "", ("float32",), ((7,),), 28)
    receive = Collective("recv_", "forward 0", (0, 1), "", ("float32",), ((7,),), 28)
    assert ledger(scene, (gathers[0], send), (gathers[1], receive)).violated() == set()


def test_the_ranks_that_scatter_nothing_are_not_compared_with_the_root(scene):
    """As torch's differentiable all_gather does it in its backward: one scatter from every rank."""
    root = Collective("scatter", "backward 0", (0, 1), "", ("float32", "float32"), ((1,), (1,)), 8)
    other = Collective("scatter", "backward 0", (0, 1))
    assert ledger(scene, (root, other), (other, root)).violated() == set()
    half = Collective("scatter", "backward 0", (0, 1), "", ("float16", "float16"), ((1,), (1,)), 4)
    alone = Collective("scatter", "backward 0", (0,))
    for wrong in (half, alone, REDUCE):
        assert ledger(scene, (root,), (wrong,)).violated() == {"collectives"}


def test_groups_may_communicate_differently(scene):
    one = ledger(scene, (REDUCE,), (), (REDUCE,), (), groups=((0, 2), (1, 3)))
    assert one.violated() == set()


def test_a_group_that_did_not_return_is_not_compared(scene):
    one = ledger(scene, (REDUCE,), ())
    one.change(1, ending="timeout")
    assert one.outcomes()["collectives"] == "UNDECIDED"


@pytest.mark.parametrize("phase", ["forward 1", "backward 1"])
def test_a_collective_in_evaluation_is_a_violation_even_if_the_rank_hung_there(scene, phase):
    entry = Collective("all_reduce", phase, (0, 1), "sum", ("float32",), ((7,),), 28)
    steps = (Step(), Step(mode="eval"))
    one = ledger(scene, (REDUCE, entry), (REDUCE, entry), steps=steps)
    assert one.violated() == {"eval_is_local"}
    one.change(1, ending="timeout", ledger=(REDUCE,))
    assert one.violated() == {"eval_is_local", "ending"}
    found = one.verdicts()["eval_is_local"].discrepancies[0]
    assert (found.quantity, found.mismatched_ranks) == (f"ledger of {phase}", (0,))


def test_sending_in_evaluation_is_communication_too(scene):
    entry = Collective("send", "forward 0", (0, 1), "", ("float32",), ((7,),), 28)
    one = ledger(scene, (entry,), (), steps=(Step(mode="eval"),))
    assert "eval_is_local" in one.violated()


def test_a_contract_of_summed_gradients_is_about_training_and_the_message_says_so(scene):
    one = ledger(scene, (Collective("allreduce_", "backward 0"),), steps=(Step(mode="eval"),))
    assert "training" not in one.verdicts()["eval_is_local"].discrepancies[0].message
    one.contract = Contract(affine_grad="sum")
    assert one.violated() == {"eval_is_local"}
    assert "affine_grad is about training" in one.verdicts()["eval_is_local"].discrepancies[0].message


def test_eval_is_local_says_nothing_of_training(scene):
    assert "eval_is_local" not in ledger(scene, (REDUCE,), (REDUCE,)).verdicts()

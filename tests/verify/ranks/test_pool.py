"""The pool on real gloo ranks: what a right subject gives back, and what the pool does with its groups."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from properties.case import Case, Special, Step
from properties.probe import second
from properties.values.elements import digest, parameters, tensors
from tests.verify.ranks.real import CASE, HERE, exists, spec, until_gone
from verify.errors import RankError, SubjectError
from verify.ranks.group_registry import MAX_GROUPINGS, MAX_GROUPS
from verify.ranks.pool import LostGroup, RankPool
from verify.subjects.builtins import BUILTINS


def local_reference(case: Case, rank: int):
    """Output, gradients and buffers of plain batch norm on one rank, in float64."""
    x, g = tensors(case, rank, step=0)
    g = np.broadcast_to(g, x.shape)
    p = parameters(case)
    mean, var = x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True)
    xhat = (x - mean) / np.sqrt(var + case.eps)
    weight = p.weight[None, :, None]
    dx = weight / np.sqrt(var + case.eps)
    dx = dx * (g - g.mean((0, 2), keepdims=True) - xhat * (g * xhat).mean((0, 2), keepdims=True))
    n = x.shape[0] * x.shape[2]
    shape = case.shape_of(rank)
    return {
        "output.0": (xhat * weight + p.bias[None, :, None]).reshape(shape),
        "grad_input.0": dx.reshape(shape),
        "grad_weight.0": (g * xhat).sum((0, 2)),
        "grad_bias.0": g.sum((0, 2)),
        "running_mean.0": 0.9 * p.running_mean + 0.1 * mean.ravel(),
        "running_var.0": 0.9 * p.running_var + 0.1 * var.ravel() * n / (n - 1),
    }


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "cropped", "split"])
@pytest.mark.parametrize("cotangent", ["contiguous", "channels_last", "permuted", "expanded"])
def test_every_rank_gives_back_what_batch_norm_of_its_own_batch_is(pool, layout, cotangent):
    case = msgspec.structs.replace(CASE, input_layout=layout, cotangent_layout=cotangent)
    seen = pool.run(spec("Local"), case)
    for rank in (0, 1):
        ours = seen.ranks[rank]
        assert ours.ending == "returned"
        assert ours.raised is None
        assert ours.modified == ()
        assert ours.ledger == ()
        assert ours.digest == digest(*tensors(case, rank, step=0))
        for name, expected in local_reference(case, rank).items():
            assert ours.tensors[name].dtype == "float32"
            np.testing.assert_allclose(ours.tensors[name].values, expected, rtol=2e-5, atol=2e-5)
        assert ours.tensors["num_batches_tracked.end"].array == 1


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_tensors_arrive_in_their_own_dtype(pool, dtype):
    case = msgspec.structs.replace(CASE, dtype=dtype, param_dtype=dtype)
    ours = pool.run(spec("Local"), case).ranks[1]
    coarse = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}[dtype]
    assert ours.tensors["running_var.end"].dtype == dtype
    output = ours.tensors["output.0"]
    assert output.dtype == dtype
    expected = local_reference(case, 1)["output.0"]
    np.testing.assert_allclose(output.values, expected, rtol=coarse, atol=coarse)


def test_a_tensor_carries_strides_requires_grad_and_aliasing(pool):
    case = msgspec.structs.replace(CASE, input_layout="channels_last")
    output = pool.run(spec("Local"), case).ranks[0].tensors["output.0"]
    assert output.shape == (3, 5, 2, 3)
    assert output.strides == (30, 1, 15, 5)
    assert output.requires_grad
    assert not output.aliases_input
    same = pool.run(spec("Identity"), CASE).ranks[0].tensors["output.0"]
    assert same.aliases_input


def test_a_rank_without_samples_gives_empty_tensors(pool):
    case = msgspec.structs.replace(CASE, batches=(3, 0), steps=(Step(mode="eval"),))
    ours = pool.run(spec("Local"), case).ranks[1]
    assert ours.ending == "returned"
    assert ours.tensors["output.0"].shape == (0, 5, 2, 3)


def test_a_frozen_parameter_and_an_input_without_gradient_have_none(pool):
    case = msgspec.structs.replace(CASE, frozen=("weight",), input_grad=(True, False))
    seen = pool.run(spec("Local"), case)
    assert "grad_weight.0" not in seen.ranks[0].tensors
    assert "grad_bias.0" in seen.ranks[0].tensors
    assert "grad_input.0" in seen.ranks[0].tensors
    assert "grad_input.0" not in seen.ranks[1].tensors


@pytest.mark.parametrize(("affine", "present"), [("both", (1, 1)), ("weight", (1, 0)), ("none", (0, 0))])
def test_the_module_is_built_as_the_case_says(pool, affine, present):
    case = msgspec.structs.replace(CASE, affine=affine, tracking=False)
    found = pool.run(spec("Local"), case).ranks[0].tensors
    assert tuple(f"grad_{name}.0" in found for name in ("weight", "bias")) == present
    assert not any(name.startswith("running") for name in found)


def test_parameter_gradients_are_zeroed_unless_the_step_accumulates(pool):
    case = msgspec.structs.replace(CASE, steps=(Step(), Step(), Step(accumulate=True)))
    found = pool.run(spec("Local"), case).ranks[0].tensors
    drawn = [tensors(case, 0, step=k)[1].sum((0, 2)) for k in range(3)]
    for step, expected in enumerate([drawn[0], drawn[1], drawn[1] + drawn[2]]):
        np.testing.assert_allclose(found[f"grad_bias.{step}"].values, expected, rtol=1e-5, atol=1e-5)


def test_a_deferred_backward_runs_after_the_next_forward(pool):
    case = msgspec.structs.replace(CASE, steps=(Step(backward="deferred"), Step()))
    phases = [entry.phase for entry in pool.run(spec("Synced"), case).ranks[0].ledger]
    assert phases == ["forward 0", "forward 1", "backward 0", "backward 1"]


def test_recomputation_runs_the_forward_again_inside_the_backward(pool):
    case = msgspec.structs.replace(CASE, steps=(Step(recompute=True),))
    ours = pool.run(spec("Synced"), case).ranks[0]
    assert [(e.phase, e.reduction) for e in ours.ledger] == [
        ("forward 0", "sum"),
        ("backward 0", "max"),
        ("backward 0", "sum"),
    ]
    assert ours.tensors["num_batches_tracked.0"].array == 1
    assert ours.tensors["num_batches_tracked.end"].array == 2


def test_strided_buffers_are_views_of_every_second_element(pool):
    case = msgspec.structs.replace(CASE, strided_buffers=True)
    found = pool.run(spec("Local"), case).ranks[0].tensors
    assert found["running_mean.end"].strides == (2,)
    np.testing.assert_allclose(
        found["running_var.end"].values, local_reference(case, 0)["running_var.0"], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("wrong", "shape", "dtype"),
    [
        ("channels", "(3, 6, 2, 3)", "float32"),
        ("dims", "(3,)", "float32"),
        ("integer", "(3, 5, 2, 3)", "int64"),
    ],
)
def test_a_wrong_case_feeds_the_wrong_input(pool, losses, wrong, shape, dtype):
    case = msgspec.structs.replace(CASE, wrong=wrong, specials=(Special(kind="nan"),))
    seen = pool.run(spec("RefusesEverywhere"), case)
    for ours in seen.ranks:
        assert ours.ending == "raised"
        assert ours.raised.type == "ValueError"
        of_this_rank = shape.replace("3", str(case.batches[ours.rank]), 1)
        assert ours.raised.message == f"Expected something else than {of_this_rank} {dtype}"
        assert ours.raised.phase == "forward 0"
    assert losses == [], "a refusal on every rank must not cost the group"


def test_the_ledger_tells_operation_group_reduction_dtype_shape_and_bytes(pool):
    case = Case(batches=(2, 2, 2), groups=((0, 2), (1,)))
    seen = pool.run(spec("Synced"), case)
    forward, backward = seen.ranks[2].ledger
    assert (forward.op, forward.phase, forward.group) == ("all_reduce", "forward 0", (0, 2))
    assert (forward.reduction, forward.dtypes, forward.shapes, forward.bytes) == (
        "sum",
        ("float32",),
        ((3,),),
        12,
    )
    assert (backward.phase, backward.reduction, backward.dtypes) == ("backward 0", "max", ("float64",))
    assert seen.ranks[1].ledger[0].group == (1,)


def test_collectives_of_every_kind_are_seen(pool):
    found = [entry.op for entry in pool.run(spec("Talkative"), CASE).ranks[0].ledger]
    assert found == [
        "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "barrier", "all_reduce", "all_reduce",
    ]  # fmt: skip


def test_a_probe_asks_for_a_second_run(pool):
    case = msgspec.structs.replace(CASE, probe="repeatable")
    seen = pool.run(spec("Local"), case)
    assert seen.again is not None
    for first, again in zip(seen.ranks, seen.again.ranks, strict=True):
        assert first.tensors["output.0"].array.tobytes() == again.tensors["output.0"].array.tobytes()
    scaled = msgspec.structs.replace(CASE, probe="scaling")
    seen = pool.run(spec("Local"), scaled)
    assert second(scaled) is not None
    assert seen.again is not None
    assert not np.array_equal(
        seen.ranks[0].tensors["output.0"].values, seen.again.ranks[0].tensors["output.0"].values
    )


def test_what_a_subject_changes_in_place_is_named(pool):
    seen = pool.run(spec("WritesItsInput"), CASE)
    assert set(seen.ranks[0].modified) == {"input.0", "cotangent.0", "weight.0"}


def test_settings_that_a_subject_leaves_are_undone_and_draws_repeat(pool, losses):
    first, other = pool.run(spec("Dirty"), CASE), pool.run(spec("Dirty"), CASE)
    assert [ours.raised for ours in (*first.ranks, *other.ranks)] == [None] * 4
    assert (
        first.ranks[0].tensors["output.0"].array.tobytes()
        == other.ranks[0].tensors["output.0"].array.tobytes()
    )
    assert losses == []


def test_a_group_whose_process_cannot_be_put_right_is_renewed(pool, losses):
    assert pool.run(spec("LeavesAMode"), CASE).ranks[0].ending == "returned"
    assert pool.run(spec("LeavesAMode"), CASE).ranks[0].ending == "returned"
    assert [loss.reason for loss in losses] == ["left its process changed: modes"] * 2


def test_the_parent_can_work_between_submit_and_observation(pool, gate):
    ticket = pool.submit(spec("Waits"), CASE)
    gate.wait_for(1, ranks=2)
    gate.open()
    assert [seen.ending for seen in ticket.result().ranks] == ["returned", "returned"]


def test_a_case_that_nobody_asks_for_stands_in_no_ones_way(pool):
    pool.submit(spec("Local"), CASE)
    seen = pool.run(spec("Local"), msgspec.structs.replace(CASE, seed=8))
    assert seen.ranks[0].digest == digest(*tensors(msgspec.structs.replace(CASE, seed=8), 0, step=0))


def test_a_subject_that_accepts_few_keywords_is_built_and_moved(pool):
    assert pool.describe(spec("TakesLittle")).keywords == ("eps",)
    case = msgspec.structs.replace(CASE, dtype="float64", param_dtype="float64")
    ours = pool.run(spec("TakesLittle"), case).ranks[0]
    assert ours.ending == "returned"
    assert ours.tensors["grad_weight.0"].dtype == "float64"


def test_describe_tells_the_promise(pool):
    found = pool.describe(spec("Local"))
    assert found.name == "subjects.py:Local"
    assert found.promise == {"domain": {"dims": [2, 3, 4, 5]}, "grade": "B"}
    assert found.keywords == (
        "eps", "momentum", "affine", "track_running_stats", "process_group", "device", "dtype", "bias",
    )  # fmt: skip
    assert found.file == str(HERE / "subjects.py")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("no_such_module_anywhere:BatchNorm", "there is no 'no_such_module_anywhere' on the path"),
        ("torch.nn:SyncBatchNrm", "did you mean SyncBatchNorm"),
        ("./nowhere.py:Factory", "nowhere.py does not exist"),
        ("NOT_CALLABLE", "to be callable, but it is of type int"),
        ("unplain", "Expected plain data in unplain.syncbn_verify"),
        ("broken.py", "raised ZeroDivisionError: division by zero"),
        ("leaving.py", "raised SystemExit"),
        ("dying.py", "the process ended: exit code 5"),
        ("aggregate", f"one of {', '.join(BUILTINS)}"),
    ],
)
def test_a_subject_that_cannot_be_loaded_is_one_line(pool, tmp_path, wanted, message):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit()\n")
    (tmp_path / "dying.py").write_text("import os\nos._exit(5)\n")
    if wanted.endswith(".py"):
        wanted = f"{tmp_path / wanted}:Factory"
    elif wanted in ("NOT_CALLABLE", "unplain"):
        wanted = spec(wanted)
    with pytest.raises(SubjectError) as caught:
        pool.describe(wanted)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_case_of_a_subject_has_time_to_warm_up(losses):
    with RankPool(timeout=0.3, on_lost=losses.append) as pool:
        assert pool.run(spec("SleepsLonger"), CASE).ranks[0].ending == "returned"
        pool.timeout = 0.1
        assert pool.run(spec("SleepsLonger"), CASE).ranks[0].ending == "timeout"


def test_a_failure_of_our_own_is_a_rank_error_and_costs_the_group(pool, losses, monkeypatch):
    def fail(*_, **__):
        raise OSError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("verify.ranks.shared_tensors.read", fail)
        with pytest.raises(RankError, match="no memory"):
            pool.run(spec("Local"), CASE)
    assert [loss.reason for loss in losses] == ["RankError"]
    assert pool.run(spec("Local"), CASE).ranks[0].ending == "returned"


def test_groups_are_bounded_in_number(losses):
    with RankPool(timeout=5.0, on_lost=losses.append) as pool:
        for world_size in range(1, MAX_GROUPS + 2):
            case = Case(batches=(2,) * world_size)
            assert {ours.ending for ours in pool.run(spec("Synced"), case).ranks} == {"returned"}
            assert len(pool.groups.open) <= MAX_GROUPS
    assert losses == []


def test_process_groups_are_bounded_in_number(losses):
    groupings = [
        ((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)), ((0,), (1, 2, 3)), ((1,), (0, 2, 3)),
        ((2,), (0, 1, 3)), ((3,), (0, 1, 2)), ((0,), (1,), (2, 3)), ((2,), (3,), (0, 1)),
    ]  # fmt: skip
    assert len(groupings) > MAX_GROUPINGS
    with RankPool(timeout=5.0, on_lost=losses.append) as pool:
        for groups in groupings:
            seen = pool.run(spec("Synced"), Case(batches=(2,) * 4, groups=groups))
            assert [ours.ledger[0].group for ours in seen.ranks] == [
                next(group for group in groups if rank in group) for rank in range(4)
            ]
    assert losses == []


def test_sixteen_ranks_run(losses):
    with RankPool(on_lost=losses.append) as pool:
        seen = pool.run(spec("Synced"), Case(batches=(1,) * 15 + (0,), spatial=((2,),), steps=(Step(),)))
    assert [ours.rank for ours in seen.ranks] == list(range(16))
    assert {ours.ending for ours in seen.ranks[:15]} == {"returned"}


def test_nothing_is_left_behind_after_close():
    with RankPool() as pool:
        pool.run(spec("Local"), CASE)
        folder = pool.groups.client.folder
        (group,) = pool.groups.open.values()
        pids = (*group.pids, pool.groups.client._process.pid)
        assert all(exists(pid) for pid in pids)
    assert until_gone(*pids)
    assert not folder.exists()
    with pytest.raises(RankError, match="closed"):
        pool.run(spec("Local"), CASE)


_VICTIM = """
import os, sys, time
from properties.case import Case
from verify.ranks.pool import RankPool
pool = RankPool()
pool.run(sys.argv[1], Case())
assert "torch" not in sys.modules and "jax" not in sys.modules
(group,) = pool.groups.open.values()
print(*group.pids, pool.groups.client._process.pid, pool.groups.client.folder, flush=True)
pool.submit(sys.argv[1], Case(momentum=None))
time.sleep(60 if sys.argv[2] == "wait" else 0)
"""


@pytest.mark.parametrize("how", ["kill", "exit", "interrupt"])
def test_nothing_is_left_behind_however_the_parent_ends(how):
    parent = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, spec("HangsLater"), "wait" if how != "exit" else "go"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=HERE.parents[2],
    )
    with parent:
        *pids, folder = parent.stdout.readline().split()
        assert len(pids) == 3
        if how != "exit":
            parent.send_signal({"kill": 9, "interrupt": 2}[how])
        parent.wait(120)  # closing waits, bounded, for a server that does not answer
    limit = time.monotonic() + 10
    while time.monotonic() < limit and (any(exists(int(pid)) for pid in pids) or Path(folder).exists()):
        time.sleep(0.05)
    assert not any(exists(int(pid)) for pid in pids)
    assert not Path(folder).exists()


def test_a_server_that_is_killed_takes_its_ranks_along_and_is_replaced(losses):
    with RankPool(timeout=2.0, on_lost=losses.append) as pool:
        pool.run(spec("Local"), CASE)
        (group,) = pool.groups.open.values()
        pids = group.pids
        os.kill(pool.groups.client._process.pid, 9)
        pool.groups.client._process.wait(5)
        limit = time.monotonic() + 5
        while any(exists(pid) for pid in pids) and time.monotonic() < limit:
            time.sleep(0.02)
        assert not any(exists(pid) for pid in pids)
        assert pool.run(spec("Local"), CASE).ranks[1].ending == "returned"
    assert losses == [LostGroup(spec=spec("Local"), world_size=2, reason="the server is gone", pids=pids)]

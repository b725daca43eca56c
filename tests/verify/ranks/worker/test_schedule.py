"""What the caller does around a step, as a subject sees it: in this process, on one rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from properties.case import Case, Step
from properties.values.elements import affine
from verify.ranks.worker import execution
from verify.ranks.worker.loader import KEYWORDS


class _SilentLedger:
    """Stands in for a ledger, which would change this process."""

    def during(self, phase):
        return torch.no_grad() if phase == "construct" else torch.enable_grad()


class _Norm(torch.nn.BatchNorm1d):
    """Batch norm that notes how it is called, and may be told to misbehave."""

    seen: list
    misbehaves = ""

    def __init__(self, num_features, *, process_group, bias, **options):
        super().__init__(num_features, **options)
        type(self).seen = []

    def forward(self, x):
        if self.misbehaves == "replaces" and not x.shape[0] % 2:
            self.running_mean = self.running_mean.clone()
        if self.misbehaves == "moves":
            self.weight.data = self.weight.data.clone()
        y = super().forward(x)
        self.seen.append(
            {
                "shape": tuple(x.shape),
                "offset": x.storage_offset(),
                "grad": torch.is_grad_enabled(),
                "inference": torch.is_inference_mode_enabled(),
                "trains": self.weight.requires_grad,
                "weight": self.weight.detach().numpy().copy(),
                "output": y,
            }
        )
        return y


def ran(case, *, misbehaves="", inplace=False):
    place = execution.Place(rank=0, device=torch.device("cpu"), group=None, ledger=_SilentLedger())
    kind = type("Norm", (_Norm,), {"misbehaves": misbehaves})
    run = execution.Execution(case, kind, keywords=KEYWORDS, place=place, inplace=inplace)
    run.run()
    assert run.raised is None
    return run, kind.seen


def test_a_step_without_gradients_runs_without():
    steps = (
        Step(backward="none", grad_mode="no_grad"),
        Step(backward="none", grad_mode="inference"),
        Step(),
    )
    run, seen = ran(Case(batches=(3,), steps=steps))
    assert [(call["grad"], call["inference"]) for call in seen] == [
        (False, False),
        (False, True),
        (True, False),
    ]
    assert [run.tensors[f"output.{k}"].requires_grad for k in range(3)] == [False, False, True]
    assert "grad_input.1" not in run.tensors
    assert "grad_input.2" in run.tensors


def test_steps_have_their_own_sizes():
    case = Case(
        batches=(3,), spatial=((2,),), steps=(Step(), Step(batches=(5,)), Step(spatial=((4,),)), Step())
    )
    run, seen = ran(case)
    assert [call["shape"] for call in seen] == [(3, 1, 2), (5, 1, 2), (3, 1, 4), (3, 1, 2)]
    assert run.tensors["grad_input.1"].array.shape == (5, 1, 2)


def test_an_output_is_edited_after_it_was_looked_at():
    run, seen = ran(Case(batches=(3,), steps=(Step(edited=True),)))
    looked_at = run.tensors["output.0"].array
    np.testing.assert_allclose(seen[0]["output"].detach().numpy(), looked_at + 1, atol=1e-6)
    plain, _ = ran(Case(batches=(3,)))
    np.testing.assert_array_equal(run.tensors["grad_input.0"].array, plain.tensors["grad_input.0"].array)
    _, seen = ran(Case(batches=(3,), steps=(Step(edited=True),)), inplace=True)
    np.testing.assert_array_equal(seen[0]["output"].detach().numpy(), looked_at)


@pytest.mark.parametrize("accumulate", [False, True])
def test_of_two_backwards_the_second_is_looked_at(accumulate):
    calls = []
    steps = (Step(), Step(backward="twice", accumulate=accumulate))
    plain, _ = ran(Case(batches=(3,), steps=(Step(), Step(accumulate=accumulate))))

    class Counting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.view_as(y)

        @staticmethod
        def backward(ctx, g):
            calls.append(g)
            return g

    forward = _Norm.forward
    try:
        _Norm.forward = lambda self, x: Counting.apply(forward(self, x))
        run, _ = ran(Case(batches=(3,), steps=steps))
    finally:
        _Norm.forward = forward
    assert len(calls) == 3
    for name in ("grad_input.1", "grad_weight.1", "grad_bias.1"):
        np.testing.assert_array_equal(run.tensors[name].array, plain.tensors[name].array)


def test_parameters_are_rewritten_and_frozen_by_the_caller_for_which_nobody_is_blamed():
    steps = (Step(), Step(rewritten=True), Step(frozen=True), Step())
    case = Case(batches=(3,), channels=4, steps=steps)
    run, seen = ran(case)
    assert run.modified == []
    assert run.replaced == []
    assert [call["trains"] for call in seen] == [True, True, False, True]
    for k in range(4):
        np.testing.assert_array_equal(seen[k]["weight"], affine(case, k)[0].astype(np.float32))
    assert (seen[0]["weight"] != seen[1]["weight"]).any()
    assert ("grad_weight.2" in run.tensors, "grad_weight.3" in run.tensors) == (False, True)


def test_a_parameter_frozen_throughout_stays_so():
    case = Case(batches=(3,), frozen=("weight",), steps=(Step(), Step(frozen=True), Step()))
    run, seen = ran(case)
    assert [call["trains"] for call in seen] == [False, False, False]
    assert ("grad_weight.2" in run.tensors, "grad_bias.2" in run.tensors) == (False, True)


@pytest.mark.parametrize(
    ("misbehaves", "replaced"),
    [("", []), ("replaces", ["running_mean.1"]), ("moves", ["weight.0", "weight.1"])],
)
def test_other_tensors_and_other_memory_are_noted_by_step(misbehaves, replaced):
    run, _ = ran(Case(batches=(3,), steps=(Step(), Step(batches=(4,)))), misbehaves=misbehaves)
    assert run.replaced == replaced


@pytest.mark.parametrize("backward", ["none", "now"])
def test_an_output_that_the_caller_keeps_is_left_alone(backward):
    class Workspace(torch.autograd.Function):
        """The identity, into memory that the next call overwrites."""

        held = torch.empty(3, 1)

        @staticmethod
        def forward(ctx, y):
            return Workspace.held.copy_(y.detach()).view_as(y)

        @staticmethod
        def backward(ctx, g):
            return g

    forward = _Norm.forward
    mode = "no_grad" if backward == "none" else "enabled"
    try:
        _Norm.forward = lambda self, x: Workspace.apply(forward(self, x))
        run, _ = ran(Case(batches=(3,), steps=(Step(backward=backward, grad_mode=mode), Step())))
    finally:
        _Norm.forward = forward
    assert run.modified == ([] if backward == "now" else ["output.0"])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
def test_a_tensor_may_begin_inside_its_storage(layout):
    spatial = ((2, 2),)
    kind = torch.nn.BatchNorm2d
    case = Case(
        batches=(3,), channels=2, spatial=spatial, input_layout=layout, input_offset=3, cotangent_offset=5
    )
    data = execution.draw(case, 0, device=torch.device("cpu")).step(0)
    plain = execution.draw(
        Case(batches=(3,), channels=2, spatial=spatial, input_layout=layout), 0, device=torch.device("cpu")
    ).step(0)
    x, g = data.input.tensor, data.cotangent.tensor
    assert (x.storage_offset(), g.storage_offset()) == (3, 5)
    assert x.stride() == plain.input.tensor.stride()
    assert torch.equal(x, plain.input.tensor)
    assert data.modified() == ()
    data.input.storage[0] = 1.0  # before the first element
    assert data.modified() == ("input",)
    assert kind(2)(x).shape == x.shape


def test_the_initial_running_variance_is_as_wide_as_the_case_says():
    from properties.values.elements import parameters

    usual, wide = (parameters(Case(variance_exponent=k, channels=3)).running_var for k in (0, 18))
    np.testing.assert_array_equal(wide, usual * 2.0**18)
    half = parameters(Case(variance_exponent=18, dtype="float16", param_dtype="float16")).running_var
    assert np.isfinite(half).all()
    assert half.max() < 65504

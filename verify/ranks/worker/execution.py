"""Running: one case on one rank, from drawn values to captured tensors.

Rules
-----
- Whatever leaves the subject's code, SystemExit and KeyboardInterrupt included, becomes a `Raised` and ends
  the case on this rank; so does a tensor of the subject that cannot be looked at. What goes wrong before the
  subject is built is our own failure and is not caught here.
- The subject sees only what is written in the case: a module built by its factory, parameters and buffers
  copied in, one fresh leaf a step or, if it may write over its input, a copy that has the leaf's strides.
- A tensor is captured as soon as it exists, since later steps may change it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from properties.case import Case, events
from properties.observation import Raised
from properties.values.period import period
from verify.ranks.worker.capture import Captured, capture
from verify.ranks.worker.collective_log import Ledger
from verify.ranks.worker.exceptions import describe
from verify.ranks.worker.inputs import StepData, draw
from verify.ranks.worker.loader import Factory
from verify.ranks.worker.memory_layouts import handed_on, same_bits
from verify.ranks.worker.module import build, freeze, rewrite

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_PARAMETERS = ("weight", "bias")
_KEPT_ON = ("deferred", "none")
"""Steps whose output the caller still has when the next forward runs."""
_KEPT = (*_PARAMETERS, *_BUFFERS)
_GRAD_MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "enabled": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a case runs: the rank, its device, the process group that the subject gets, and the ledger."""

    rank: int
    device: torch.device
    group: Any
    ledger: Ledger


class _Left(Exception):
    """An exception has left the subject."""

    def __init__(self, raised: Raised) -> None:
        self.raised = raised


class Execution:
    """A case on this rank: `run` it once, then read its attributes.

    Attributes:
        tensors: What was captured, by name.
        modified: Names of inputs, cotangents, parameters and earlier outputs that the subject changed.
        replaced: Names of parameters and buffers that are no more the tensors that they were.
        raised: The exception that left the subject, if any.
        seconds: Time spent in the subject.
        digest: Of the inputs and cotangents drawn.
    """

    def __init__(
        self,
        case: Case,
        factory: Factory,
        *,
        keywords: tuple[str, ...],
        place: Place,
        whole: bool = False,
        inplace: bool = False,
    ) -> None:
        self.tensors: dict[str, Captured] = {}
        self.modified: list[str] = []
        self.replaced: list[str] = []
        self.raised: Raised | None = None
        self.seconds = 0.0
        self._case = case
        self._place = place
        self._inplace = inplace
        self._build: Callable[[], torch.nn.Module] = lambda: build(
            case, factory, keywords=keywords, device=place.device, group=place.group
        )
        self._drawn = draw(case, place.rank, device=place.device)
        self.digest = self._drawn.digest
        self._data: dict[int, StepData] = {}  # of steps that have begun, until it has been looked at
        self._whole = whole or bool(case.wrong)
        self._module: torch.nn.Module
        self._before: dict[str, torch.Tensor] = {}
        self._kept: dict[str, tuple[torch.Tensor, int]] = {}

    def run(self) -> None:
        """Build the subject and execute the schedule, until its end or the first exception."""
        try:
            with self._subject("construct"):
                self._module = self._build()
            with self._looking("construct"):
                self._before = {name: value.detach().clone() for name, value in self._tensors_of(_PARAMETERS)}
                self._kept = {name: _identity(value) for name, value in self._tensors_of(_KEPT)}
            for what, step in events(self._case):
                with self._looking(f"{what} {step}"):
                    (self._forward if what == "forward" else self._backward)(step)
            with self._looking("end"):
                self._capture(_BUFFERS, "end")
                for step in sorted(self._data):  # without a backward
                    self._note_output(step)
        except _Left as left:
            self.raised = left.raised
        for step in sorted(self._data):
            self._note_data(step)

    @contextlib.contextmanager
    def _subject(self, phase: str) -> Iterator[None]:
        """Run the subject's code inside: the ledger and the clock on, what leaves it described."""
        start = time.perf_counter()
        try:
            with self._place.ledger.during(phase):
                yield
                if self._place.device.type == "cuda":
                    torch.cuda.synchronize(self._place.device)
        except BaseException as error:
            raise _Left(describe(error, phase)) from None
        finally:
            self.seconds += time.perf_counter() - start

    @contextlib.contextmanager
    def _looking(self, phase: str) -> Iterator[None]:
        """Look at what the subject has made: a property that raises, a sparse buffer are its doing."""
        try:
            yield
        except _Left:
            raise
        except Exception as error:
            raise _Left(describe(error, phase)) from None

    def _forward(self, index: int) -> None:
        step, data = self._case.steps[index], self._drawn.step(index)
        self._data[index] = data
        if step.rewritten:
            rewrite(self._case, self._module, step=index)
            self._note_parameters(index, by_caller=True)
        freeze(self._case, self._module, step=index)
        with self._subject(f"forward {index}"), _GRAD_MODES[step.grad_mode]():
            self._module.train(step.mode == "train")
            if self._case.recomputes(index, self._place.rank):
                with set_checkpoint_early_stop(False):
                    output = checkpoint(self._applied, data.input.tensor, use_reentrant=False)
            else:
                output = self._applied(data.input.tensor)
            if not isinstance(output, torch.Tensor):
                kind = type(output).__qualname__
                raise TypeError(f"Expected a tensor, but the subject returned an object of type {kind}.")
            self.tensors[f"output.{index}"] = self._captured(output, index, data)
            if step.edited and not self._inplace:
                output.add_(1)
        data.output = output
        self._capture(_BUFFERS, str(index))
        self._note_parameters(index)
        self._note_identity(index)

    def _applied(self, leaf: torch.Tensor) -> torch.Tensor:
        """Return what the subject makes of the input: of a fresh copy of it if it may overwrite that.

        The copy is made inside of a checkpoint: what runs again is handed the input, and not what is left
        of it.
        """
        output: torch.Tensor = self._module(handed_on(leaf) if self._inplace else leaf)
        return output

    def _backward(self, index: int) -> None:
        data = self._data[index]
        step, parameters = self._case.steps[index], dict(self._tensors_of(_PARAMETERS))
        if not step.accumulate:
            for parameter in parameters.values():
                parameter.grad = None
        self._note_output(index)
        output, data.output = data.output, None
        if output is not None and output.requires_grad:
            with self._subject(f"backward {index}"):
                if self._case.recomputes(index, self._place.rank):  # a later step may have changed the mode
                    self._module.train(step.mode == "train")
                if step.backward == "twice" and not self._inplace:
                    self._backward_before(output, data, parameters)
                output.backward(data.cotangent.tensor)
        self._note_data(index)
        del self._data[index]
        gradients = {"grad_input": data.input.tensor.grad}
        gradients |= {f"grad_{name}": parameter.grad for name, parameter in parameters.items()}
        for name, gradient in gradients.items():
            if gradient is not None:
                self.tensors[f"{name}.{index}"] = self._captured(gradient, index, data)
        self._note_parameters(index)
        self._note_identity(index)

    @staticmethod
    def _backward_before(output: torch.Tensor, data: StepData, parameters: dict[str, torch.Tensor]) -> None:
        """Run a first backward that leaves no gradient behind, and retains the graph."""
        leaves = (data.input.tensor, *parameters.values())
        before = [None if leaf.grad is None else leaf.grad.clone() for leaf in leaves]
        output.backward(data.cotangent.tensor, retain_graph=True)
        for leaf, gradient in zip(leaves, before, strict=True):
            leaf.grad = gradient

    def _tensors_of(self, names: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            value = getattr(self._module, name, None)
            if isinstance(value, torch.Tensor):
                yield name, value

    def _captured(self, tensor: torch.Tensor, index: int, data: StepData) -> Captured:
        """Return a copy of an output or a gradient of a step with this data."""
        compared = self._case.probe == "repeatable" or self._case.steps[index].backward in _KEPT_ON
        sized, rank = self._case.at(index), self._place.rank
        held = 0 if self._whole else period(sized, rank)
        if held == sized.count_of(rank):
            held = 0
        return capture(tensor, beside=data.input.tensor, held=held, with_bits=compared)

    def _capture(self, names: tuple[str, ...], when: str) -> None:
        for name, value in self._tensors_of(names):
            self.tensors[f"{name}.{when}"] = capture(value)

    def _note_data(self, index: int) -> None:
        """Note whether the input or cotangent of a step has changed, once its backward is over.

        Not later: torch may let a parameter's `grad` be a view of the cotangent (a sum over a single sample
        is one), and then accumulates the next gradient into it.
        """
        self.modified.extend(f"{name}.{index}" for name in self._data[index].modified())

    def _note_output(self, index: int) -> None:
        """Note whether an output has changed since its forward, if another forward may have come in between.

        Who evaluates several batches keeps their outputs, as the caller of a deferred backward does.
        """
        data = self._data[index]
        output, before = data.output, self.tensors[f"output.{index}"]
        step = self._case.steps[index]
        edited = step.edited and not self._inplace
        if step.backward in _KEPT_ON and not edited and output is not None:
            now = self._captured(output, index, data)
            if (now.dtype, now.array.tobytes(), now.bits) != (
                before.dtype,
                before.array.tobytes(),
                before.bits,
            ):
                self.modified.append(f"output.{index}")

    def _note_parameters(self, index: int, *, by_caller: bool = False) -> None:
        """Note parameters that have changed since the last look, and go on from what they are now."""
        for name, value in self._tensors_of(_PARAMETERS):
            before = self._before.get(name)
            now = value.detach()
            if before is None or now.shape != before.shape or not same_bits(now, before):
                self._before[name] = now.clone()
                if not by_caller and f"{name}.{index}" not in self.modified:
                    self.modified.append(f"{name}.{index}")

    def _note_identity(self, index: int) -> None:
        """Note parameters and buffers that are other tensors now, or lie elsewhere, and go on from these."""
        for name, value in self._tensors_of(_KEPT):
            now, before = _identity(value), self._kept.get(name)
            if before is None or now[0] is not before[0] or now[1] != before[1]:
                self._kept[name] = now
                if f"{name}.{index}" not in self.replaced:
                    self.replaced.append(f"{name}.{index}")


def _identity(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the tensor, which is kept alive by that, and where its memory begins."""
    return tensor, tensor.data_ptr()

"""Bare steps: the subject's forwards and backwards of many cases in a loop of their own, timed in a rank.

Rules
-----
- Data is drawn and modules are built beforehand, as a training script does both before its loop. The ledger,
  digests, copies and captures of `verify.ranks.worker.execution` are left out; the schedule of each case is
  kept.
- The kernel schedules them as it does a script of the user's own (`verify.ranks.worker.scheduling`).
- The ranks begin together, after a barrier; a second run of a probe is no part of a bare step.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from properties.case import Case, events
from verify.ranks.messages import Timed
from verify.ranks.worker.inputs import draw
from verify.ranks.worker.scheduling import BATCH, USUAL, use_policy


@dataclass(slots=True)
class BareStep:
    """One case, ready to run on this rank: its module, and input and cotangent of each step."""

    case: Case
    rank: int
    module: torch.nn.Module
    inputs: list[torch.Tensor]
    cotangents: list[torch.Tensor]
    device: torch.device

    def run(self) -> None:
        """Run the schedule once."""
        outputs: dict[int, Any] = {}
        parameters = tuple(self.module.parameters())
        for what, index in events(self.case):
            step = self.case.steps[index]
            if what == "forward":
                self.module.train(step.mode == "train")
                with torch.set_grad_enabled(step.grad_mode == "enabled"):
                    outputs[index] = self._forward(index)
                continue
            if not step.accumulate:
                for parameter in parameters:
                    parameter.grad = None
            output = outputs.pop(index)
            if output.requires_grad:
                if self.case.recomputes(index, self.rank):
                    self.module.train(step.mode == "train")
                if step.backward == "twice":
                    output.backward(self.cotangents[index], retain_graph=True)
                output.backward(self.cotangents[index])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _forward(self, index: int) -> Any:
        if not self.case.recomputes(index, self.rank):
            return self.module(self.inputs[index])
        with set_checkpoint_early_stop(False):
            return checkpoint(self.module, self.inputs[index], use_reentrant=False)


def prepare(case: Case, module: torch.nn.Module, *, rank: int, device: torch.device) -> BareStep:
    """Return `case` with its data drawn, for `module`."""
    drawn = draw(case, rank, device=device)
    data = [drawn.step(index) for index in range(len(case.steps))]
    return BareStep(
        case=case,
        rank=rank,
        module=module,
        inputs=[step.input.tensor for step in data],
        cotangents=[step.cotangent.tensor for step in data],
        device=device,
    )


def timed(steps: Sequence[BareStep]) -> Timed:
    """Run `steps` one after the other, and return what they took on this rank."""
    use_policy(USUAL)
    try:
        return _timed(steps)
    finally:
        use_policy(BATCH)


def _timed(steps: Sequence[BareStep]) -> Timed:
    dist.barrier()
    cpu, marks = time.process_time(), [time.perf_counter()]
    for step in steps:
        step.run()
        marks.append(time.perf_counter())
    seconds = tuple(after - before for before, after in itertools.pairwise(marks))
    return Timed(seconds=seconds, cpu=time.process_time() - cpu)

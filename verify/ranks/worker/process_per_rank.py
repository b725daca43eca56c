"""A rank alone: one case in a fresh process that is thrown away, as a process-per-rank test runs it.

`python -m verify.ranks.worker.process_per_rank FOLDER RANK CASE SPEC` imports torch, joins a gloo group by a
file store in FOLDER, runs the case once, gathers what all ranks were given, and compares output and input
gradient with batch norm of one process on the concatenated batch. It exists to be timed (`verify bench
spawn`), and ends with 0 if the comparison holds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from properties.case import Case, decode
from verify.ranks.spec import resolve
from verify.ranks.worker.bare_steps import BareStep, prepare
from verify.ranks.worker.loader import load
from verify.ranks.worker.module import build


def main(folder: str, rank: int, case: Case, spec: str) -> None:
    """Run `case`, which has one training step, as `rank`."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), case.world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=case.world_size)
    factory, described = load(resolve(spec, folder=Path.cwd()))
    cpu = torch.device("cpu")
    module = build(case, factory, keywords=described.keywords, device=cpu, group=None)
    compare(prepare(case, module, rank=rank, device=cpu))
    dist.destroy_process_group()


def compare(step: BareStep) -> None:
    """Run the step, and compare it with batch norm of the concatenated batch.

    Raises:
        AssertionError: If it is another.
    """
    x, g = step.inputs[0], step.cotangents[0]
    y = step.module(x)
    y.backward(g)
    whole = torch.cat(_gathered(x.detach())).requires_grad_()
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
    norm = norms[x.dim() - 2](x.shape[1], eps=step.case.eps)
    norm.load_state_dict({**norm.state_dict(), "weight": step.module.weight, "bias": step.module.bias})
    expected = norm(whole)
    expected.backward(torch.cat(_gathered(g)))
    start = sum(step.case.batches[: step.rank])
    mine = slice(start, start + step.case.batches[step.rank])
    torch.testing.assert_close(y, expected[mine])
    torch.testing.assert_close(x.grad, whole.grad[mine])


def _gathered(mine: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of all ranks."""
    found: list[torch.Tensor | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return [tensor for tensor in found if tensor is not None]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), decode(sys.argv[3]), sys.argv[4])

"""Running a case on a device and with a backend that hold no data: that the plan's data reach every tensor.

A build of torch without CUDA cannot make fake CUDA tensors; the meta device stands in for any but the CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from properties.case import Case, Step
from verify.ranks.worker import execution, memory_layouts
from verify.ranks.worker.loader import KEYWORDS
from verify.ranks.worker.module import build

META = torch.device("meta")
ROOT = Path(__file__).parents[4]


class _SilentLedger:
    """Stands in for a ledger, which would change this process."""

    def during(self, phase):
        return torch.no_grad() if phase == "construct" else torch.enable_grad()


class _BatchNorm(torch.nn.BatchNorm2d):
    def __init__(self, num_features, *, process_group, bias, **options):
        super().__init__(num_features, **options)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "cropped", "split"])
def test_every_tensor_of_a_case_is_on_the_device_of_the_place(layout, monkeypatch):
    seen = {}

    def note(tensor, *, beside=None, held=0, with_bits=False):
        seen[len(seen)] = (tensor.device, beside.device if beside is not None else META)

    monkeypatch.setattr(execution, "capture", note)
    monkeypatch.setattr(execution, "same_bits", lambda first, second: first.device == second.device == META)
    monkeypatch.setattr(
        memory_layouts, "same_bits", lambda first, second: first.device == second.device == META
    )
    case = Case(
        batches=(3,), channels=4, spatial=((2, 2),), input_layout=layout, cotangent_layout="expanded",
        strided_buffers=True, random_parameters=True, steps=(Step(), Step(mode="eval")), dtype="bfloat16",
    )  # fmt: skip
    place = execution.Place(rank=0, device=META, group=None, ledger=_SilentLedger())
    ran = execution.Execution(case, _BatchNorm, keywords=KEYWORDS, place=place)
    ran.run()
    assert ran.raised is None
    assert ran.modified == []
    # Two outputs, three times three buffers, two times three gradients.
    assert list(seen.values()) == [(META, META)] * 17


class _SharedOutput(_BatchNorm):
    def forward(self, input):
        y = super().forward(input)
        self.memory = getattr(self, "memory", torch.empty_like(y.detach()))
        with torch.no_grad():
            self.memory.copy_(y)
        return self.memory.detach() if self.shares else y

    shares = True


@pytest.mark.parametrize(("shares", "modified"), [(True, ["output.0"]), (False, [])])
def test_an_output_that_the_next_forward_overwrites_is_noted(shares, modified, monkeypatch):
    monkeypatch.setattr(_SharedOutput, "shares", shares)
    case = Case(batches=(3,), spatial=((2, 2),), steps=(Step(backward="deferred"), Step()))
    place = execution.Place(rank=0, device=torch.device("cpu"), group=None, ledger=_SilentLedger())
    ran = execution.Execution(case, _SharedOutput, keywords=KEYWORDS, place=place)
    ran.run()
    assert ran.raised is None
    assert ran.modified == modified


def test_a_factory_without_device_has_its_module_moved_there():
    module = build(
        Case(channels=4, strided_buffers=True),
        torch.nn.BatchNorm2d,
        keywords=("affine",),
        device=META,
        group=None,
    )
    assert {tensor.device for tensor in module.state_dict().values()} == {META}
    assert module.running_mean.stride() == (2,)


_FAKE = """
import json, sys
import torch.testing._internal.distributed.fake_pg
from properties.case import Case
from verify.ranks import shared_tensors
from verify.ranks.messages import Load, Run, Setup, Target
from verify.ranks.worker.loop import Worker
setup = Setup(rank=2, world_size=4, device="cpu", backend="fake", folder=sys.argv[1])
worker = Worker(setup, shared_tensors.create())
target = Target(spec="", attribute="Synced", file=sys.argv[2])
worker.load(Load(target=target))
answer = worker.run(Run(case=Case(batches=(2,) * 4, groups=((0, 2), (1, 3)))))
seen = answer.observed
print(json.dumps([seen.ending, str(seen.raised), [(entry.op, entry.group) for entry in seen.ledger]]))
"""


def test_the_backend_is_data_a_fake_one_runs_the_same_code(tmp_path):
    command = [sys.executable, "-c", _FAKE, str(tmp_path), str(Path(__file__).parents[1] / "subjects.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["returned", "None", [["all_reduce", [0, 2]], ["all_reduce", [0, 2]]]]


def test_the_parent_imports_neither_torch_nor_jax_and_a_rank_neither_jax_nor_hypothesis():
    script = (
        "import sys; import {0}; print(sorted(set(sys.modules) & {{'torch', 'jax', 'hypothesis', 'pytest'}}))"
    )
    for module, found in (
        ("verify.ranks.pool", "[]"),
        ("verify.ranks.server", "[]"),
        ("verify.ranks.worker.loop", "['torch']"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script.format(module)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        assert done.stdout.strip() == found, module

"""Plans: which combinations run where, and which are refused with a reason."""

from __future__ import annotations

import pytest

from verify.ranks.placement import PlanError, plan


@pytest.mark.parametrize(
    ("device", "backend", "world_size", "gpus", "chosen", "devices"),
    [
        ("cpu", None, 3, 0, "gloo", ("cpu", "cpu", "cpu")),
        ("cpu", "gloo", 1, 8, "gloo", ("cpu",)),
        ("cuda", "gloo", 3, 2, "gloo", ("cuda:0", "cuda:1", "cuda:0")),
        ("cuda", "nccl", 2, 2, "nccl", ("cuda:0", "cuda:1")),
        ("cuda", None, 2, 4, "nccl", ("cuda:0", "cuda:1")),
        ("cuda", None, 3, 1, "gloo", ("cuda:0", "cuda:0", "cuda:0")),
    ],
)
def test_each_rank_has_its_device(device, backend, world_size, gpus, chosen, devices):
    found = plan(device=device, backend=backend, world_size=world_size, cuda_devices=gpus)
    assert (found.device, found.backend, found.world_size) == (device, chosen, world_size)
    assert found.devices == devices


@pytest.mark.parametrize(
    ("device", "backend", "world_size", "gpus", "message"),
    [
        ("tpu", None, 1, 0, "device among cpu, cuda"),
        ("cpu", "mpi", 1, 0, "backend among gloo, nccl"),
        ("cpu", "nccl", 1, 1, "device=cuda for backend=nccl"),
        ("cuda", None, 1, 0, "a GPU for device=cuda"),
        ("cuda", "nccl", 3, 2, "one GPU a rank for backend=nccl"),
        ("cpu", None, 0, 0, "1 to 64 ranks"),
        ("cpu", None, 65, 0, "1 to 64 ranks"),
    ],
)
def test_what_cannot_run_is_refused_with_what_is_missing(device, backend, world_size, gpus, message):
    with pytest.raises(PlanError, match=message):
        plan(device=device, backend=backend, world_size=world_size, cuda_devices=gpus)

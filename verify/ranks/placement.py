"""A plan: which backend the ranks of a group speak and which device each of them computes on.

| device | backend | devices |
|---|---|---|
| cpu | gloo | `cpu` on every rank |
| cuda | gloo | `cuda:(rank mod GPUs)`: ranks share GPUs |
| cuda | nccl | `cuda:rank`: one GPU a rank, as NCCL demands |

Pure: the GPU path differs from the CPU path in this data, not in code.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import msgspec

from properties.case_checks import MAX_WORLD_SIZE

Device = Literal["cpu", "cuda"]
Backend = Literal["gloo", "nccl"]


class PlanError(ValueError):
    """A combination of device, backend and world size that cannot run."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Device type, backend, number of ranks and torch's device string of each rank."""

    device: Device
    backend: Backend
    world_size: int
    devices: tuple[str, ...]


def plan(*, device: str, backend: str | None, world_size: int, cuda_devices: int) -> Plan:
    """Return the plan for `world_size` ranks.

    Args:
        device: `cpu` or `cuda`.
        backend: `gloo` or `nccl`; None for gloo on the CPU, and on CUDA for nccl where there is a GPU for
            each rank, else gloo.
        world_size: Number of ranks, 1 to 64.
        cuda_devices: Number of visible GPUs.

    Raises:
        PlanError: If no such group can run, with what is missing.
    """
    if device not in get_args(Device):
        raise PlanError(f"Expected a device among cpu, cuda, but got device={device!r}.")
    if backend is not None and backend not in get_args(Backend):
        raise PlanError(f"Expected a backend among gloo, nccl, but got backend={backend!r}.")
    if not 1 <= world_size <= MAX_WORLD_SIZE:
        raise PlanError(f"Expected 1 to {MAX_WORLD_SIZE} ranks, but got world_size={world_size}.")
    if device == "cpu" and backend == "nccl":
        raise PlanError("Expected device=cuda for backend=nccl, but got device='cpu'; use gloo on the CPU.")
    if device == "cuda" and cuda_devices < 1:
        raise PlanError("Expected a GPU for device=cuda, but torch sees none (cuda_devices=0).")
    if backend == "nccl" and cuda_devices < world_size:
        raise PlanError(
            f"Expected one GPU a rank for backend=nccl, but got cuda_devices={cuda_devices} with "
            f"world_size={world_size}; use gloo, where ranks share GPUs."
        )
    ranks = range(world_size)
    devices = tuple("cpu" if device == "cpu" else f"cuda:{rank % cuda_devices}" for rank in ranks)
    chosen = backend or ("nccl" if device == "cuda" and cuda_devices >= world_size else "gloo")
    return Plan(
        device=cast(Device, device), backend=cast(Backend, chosen), world_size=world_size, devices=devices
    )

"""`torch.nn.SyncBatchNorm`, unmodified: native on CUDA, over stand-in kernels on the CPU.

On the CPU the five operators that have no CPU kernel are registered (`verify.subjects.kernels`), for the rest
of the process; this module is therefore imported inside ranks only. The module's device check admits the
device type of the private-use backend; while its forward runs, and no longer, "cpu" is given for that name
(autocast, which checkpointing enters, asks for it too). On CUDA nothing is patched.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from verify.subjects import kernels


def SyncBatchNorm(
    num_features: int,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,  # noqa: FBT001, FBT002
    track_running_stats: bool = True,  # noqa: FBT001, FBT002
    process_group: Any = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    *,
    bias: bool = True,
) -> torch.nn.SyncBatchNorm:
    """Return a `torch.nn.SyncBatchNorm` on `device` (None for the CPU)."""
    module = torch.nn.SyncBatchNorm(
        num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype
    )
    if not bias:
        module.register_parameter("bias", None)
    if torch.device(device or "cpu").type == "cpu":
        _install_kernels()
        module.register_forward_pre_hook(_admit_cpu)
        module.register_forward_hook(_admit_cpu_no_more, always_call=True)
    return module


SyncBatchNorm.syncbn_verify = {  # type: ignore[attr-defined]
    "domain": {"eps": ["positive", "zero"]},
    "known": "known/torch.toml",
}
SyncBatchNorm.convert_sync_batchnorm = torch.nn.SyncBatchNorm.convert_sync_batchnorm  # type: ignore[attr-defined]

_backend_name = torch._C._get_privateuse1_backend_name


@functools.cache
def _install_kernels() -> torch.library.Library:
    return kernels.install()


def _admit_cpu(*_: Any) -> None:
    torch._C._get_privateuse1_backend_name = lambda: "cpu"


def _admit_cpu_no_more(*_: Any) -> None:
    torch._C._get_privateuse1_backend_name = _backend_name

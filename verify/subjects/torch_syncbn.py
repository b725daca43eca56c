"""`torch.nn.SyncBatchNorm`, unmodified: native on CUDA, over stand-in kernels on the CPU.

On the CPU the five operators that have no CPU kernel are registered (`verify.subjects.kernels`), and the
module's device check, which admits the device type of the private-use backend, is met by answering "cpu" for
its name. Both hold for the rest of the process, so this module is imported inside ranks only. On CUDA nothing
is patched.
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
    """Return a `torch.nn.SyncBatchNorm` that runs on `device` (None for the CPU)."""
    if torch.device(device or "cpu").type == "cpu":
        enable_on_cpu()
    module = torch.nn.SyncBatchNorm(
        num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype
    )
    if not bias:
        module.register_parameter("bias", None)
    return module


SyncBatchNorm.syncbn_verify = {  # type: ignore[attr-defined]
    "domain": {},
    "known": "verify/subjects/known/torch.toml",
}


@functools.cache
def enable_on_cpu() -> torch.library.Library:
    """Let `torch.nn.SyncBatchNorm` run on the CPU in this process."""
    torch._C._get_privateuse1_backend_name = lambda: "cpu"
    return kernels.install()

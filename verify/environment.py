"""The environment: versions and facts of this machine that a report must carry.

Versions are read from the installed packages' metadata: the parent process never imports torch.
"""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("syncbn-verify", "torch", "jax", "jaxlib", "numpy", "hypothesis")


def version(package: str) -> str:
    """Return the installed version of `package`, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def shared_memory() -> int:
    """Return the free bytes of /dev/shm; 0 if there is none."""
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else 0


def backend_words(device: str, backend: str | None) -> str:
    """Return how messages call the backend; on CUDA the number of GPUs decides unless one was asked for."""
    return backend or ("gloo" if device == "cpu" else "nccl or gloo")


def environment(*, device: str, backend: str) -> dict[str, Any]:
    """Return versions, platform, cores, device and backend."""
    return {
        "versions": {package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "shared_memory": shared_memory(),
        "device": device,
        "backend": backend,
    }


def one_line(*, device: str, backend: str) -> str:
    """Return the environment in one line, for headers."""
    return (
        f"syncbn-verify {version('syncbn-verify')}: torch {version('torch')}, jax {version('jax')}, "
        f"hypothesis {version('hypothesis')}, Python {platform.python_version()}, {device}/{backend}, "
        f"{cores()} cores"
    )

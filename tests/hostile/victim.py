"""What all hostile subjects share: a right batch norm, a trigger, and a look at the state of the process.

A hostile subject is the built-in `aggregated` until a case has the momentum `TRIGGER`; then it strikes. On
every other case it looks whether its process is as it was when the first case began: whatever it has changed
must have been put right by then, or its process must be another one.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.modules import module

from verify.subjects.aggregated import Aggregated

TRIGGER = 0.75
FOREVER = 600
_seen: dict[str, dict[str, object]] = {}


class Hostile(Aggregated):
    """Right, unless the momentum of the case is `TRIGGER`."""

    @property
    def triggered(self) -> bool:
        return self.momentum == TRIGGER

    @property
    def rank(self) -> int:
        return dist.get_rank()

    def forward(self, x):
        if self.triggered:
            return self.strike(x)
        untouched()
        return super().forward(x)

    def strike(self, x):
        """Do what is hostile, then what is right."""
        self.attack()
        return super().forward(x)

    def attack(self):
        """Do what is hostile, before a right forward."""


def untouched():
    """Raise if the process is not as it was when the first case began."""
    now = state()
    before = _seen.setdefault("state", now)
    changed = [
        f"{name}: {before[name]!r} before, {now[name]!r} now" for name in now if now[name] != before[name]
    ]
    assert not changed, "; ".join(changed)


def state() -> dict[str, object]:
    """Return what a subject can see of its process."""
    mask = os.umask(0o022)
    os.umask(mask)
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.empty(0).device.type,
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomalies": torch.is_anomaly_enabled(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "subnormals": float(torch.tensor([1e-38]) * 1e-2) != 0.0,
        "mkldnn": torch._C._get_mkldnn_enabled(),
        "random": float(torch.rand(())),
        "numpy random": float(np.random.rand()),  # noqa: NPY002
        "numpy errors": np.geterr(),
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "umask": mask,
        "signals masked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGUSR2)],
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "limits": [resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE)],
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "cores": os.sched_getaffinity(0),
        "recursion": sys.getrecursionlimit(),
        "tracing": sys.gettrace(),
        "path": list(sys.path),
        "collecting": gc.isenabled(),
        "warnings": len(warnings.filters),
        "output": (os.fstat(1).st_ino, os.fstat(2).st_ino, sys.stdout.writable()),
        "many children": _children() > 4,
        "many threads": threading.active_count() > 4,
        "descriptors": len(tuple(Path("/proc/self/fd").iterdir())) // 100,
        "functions": [id(dist.all_reduce), id(torch.nn.functional.batch_norm), id(torch.nn.Module.__call__)],
        "hooks": len(module._global_forward_hooks),
        "process group": dist.get_world_size(),
    }


def _children() -> int:
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

"""Settings: what a subject may change in its process that can be put right, each with the way back.

Rules
-----
- A setting is read before every case, so reading one must take microseconds at most.
- Its right value is either what a fresh process has, or what it was when the first case began: importing a
  subject may set environment variables and extend `sys.path`.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_ON, _OFF = True, False
_SMALLEST = sys.float_info.min
LIMITS = tuple(
    getattr(resource, f"RLIMIT_{name}") for name in ("AS", "DATA", "STACK", "NOFILE", "CPU", "FSIZE")
)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: `read` it, and `write` the value that it must have."""

    read: Callable[[], Any]
    wanted: Any
    write: Callable[[Any], object]

    def restore(self) -> None:
        """Write it if it is not what it must be, or cannot be read."""
        with contextlib.suppress(Exception):
            if self.read() == self.wanted:
                return
        self.write(self.wanted)


def of_a_fresh_process() -> tuple[Setting, ...]:
    """Return the settings whose right value is that of a fresh rank."""
    return (
        Setting(torch.get_default_dtype, torch.float32, torch.set_default_dtype),
        Setting(torch.get_num_threads, 1, torch.set_num_threads),
        Setting(torch.is_grad_enabled, _ON, torch.set_grad_enabled),
        Setting(torch.get_deterministic_debug_mode, 0, torch.set_deterministic_debug_mode),
        Setting(torch.is_anomaly_enabled, _OFF, torch.autograd.set_detect_anomaly),
        Setting(_flushes_subnormals, _OFF, torch.set_flush_denormal),
        Setting(torch.get_float32_matmul_precision, "highest", torch.set_float32_matmul_precision),
        Setting(torch._C._get_mkldnn_enabled, _ON, torch._C._set_mkldnn_enabled),
        Setting(sys.getrecursionlimit, sys.getrecursionlimit(), sys.setrecursionlimit),
        Setting(sys.getswitchinterval, sys.getswitchinterval(), sys.setswitchinterval),
        Setting(sys.gettrace, None, sys.settrace),
        Setting(sys.getprofile, None, sys.setprofile),
        Setting(threading.gettrace, None, threading.settrace),
        Setting(gc.isenabled, _ON, lambda _: gc.enable()),
        Setting(np.geterr, np.geterr(), lambda wanted: np.seterr(**wanted)),
        Setting(_blocked, _blocked(), lambda mask: signal.pthread_sigmask(signal.SIG_SETMASK, mask)),
        Setting(_timers, (0.0,) * len(_TIMERS), _disarm),
        Setting(lambda: os.sched_getaffinity(0), os.sched_getaffinity(0), _set_affinity),
    )


def of_a_loaded_subject(folder: str) -> tuple[Setting, ...]:
    """Return the settings whose right value is what they are now; `folder` is the working directory."""
    mask = os.umask(0o022)
    os.umask(mask)
    return (
        Setting(os.getcwd, folder, os.chdir),
        Setting(_environment, dict(_environment()), _set_environment),
        Setting(lambda: sys.path, list(sys.path), lambda wanted: sys.path.__setitem__(slice(None), wanted)),
        Setting(lambda: warnings.filters, list(warnings.filters), _set_filters),
        Setting(lambda: None, mask, os.umask),
        *(Setting(_soft_limit(kind), _soft_limit(kind)(), _limiter(kind)) for kind in LIMITS),
    )


class Output:
    """Descriptors 1 and 2 and the streams over them, as they were."""

    def __init__(self) -> None:
        self._kept = [os.dup(1), os.dup(2)]
        self._files = [identity(number) for number in self._kept]
        self._streams: dict[str, Any] = {"stdout": sys.stdout, "stderr": sys.stderr}

    def restore(self) -> None:
        """Open again what was closed or directed elsewhere."""
        for number, kept, file in zip((1, 2), self._kept, self._files, strict=True):
            if identity(number) != file:
                os.dup2(kept, number)
        for number, (name, stream) in enumerate(self._streams.items(), 1):
            if stream.closed:
                self._streams[name] = _unbuffered(number)
            setattr(sys, name, self._streams[name])


def _unbuffered(number: int) -> io.TextIOWrapper:
    raw = io.FileIO(number, "wb", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def identity(number: int) -> tuple[int, int] | None:
    """Return which file a descriptor stands for, (device, inode); None if it is closed."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _flushes_subnormals() -> bool:
    return _SMALLEST * 0.5 == 0.0


def _blocked() -> set[int]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def _timers() -> tuple[float, ...]:
    return tuple(signal.getitimer(timer)[0] for timer in _TIMERS)


def _disarm(_: object) -> None:
    for timer in _TIMERS:
        signal.setitimer(timer, 0.0)


def _set_affinity(cores: set[int]) -> None:
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cores)


def _environment() -> dict[Any, Any]:
    """Return what `os.environ` keeps: comparing that takes a microsecond, comparing `os.environ` 35."""
    kept: dict[Any, Any] = os.environ._data  # type: ignore[attr-defined]
    return kept


def _set_environment(wanted: dict[Any, Any]) -> None:
    for name in _environment().keys() - wanted.keys():
        os.unsetenv(name)
    for name, value in wanted.items():
        os.putenv(name, value)
    kept = _environment()
    kept.clear()
    kept.update(wanted)


def _set_filters(wanted: list[Any]) -> None:
    warnings.filters[:] = wanted  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _soft_limit(kind: int) -> Callable[[], int]:
    return lambda: resource.getrlimit(kind)[0]


def _limiter(kind: int) -> Callable[[int], object]:
    return lambda wanted: resource.setrlimit(kind, (wanted, resource.getrlimit(kind)[1]))

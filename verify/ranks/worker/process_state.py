"""Process state: what a subject may have changed in its process, put right before the next case, or told.

Every case starts from the same state, whatever ran before it, so that its replay alone gives the same bits.
What can be put right is (`verify.ranks.worker.process_settings`); what cannot costs the group, and a new one
is made.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import resource
import signal
import threading
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.distributed_c10d as c10d
from torch.nn.modules import batchnorm, module

from verify.ranks.messages import TRACE_SIGNAL
from verify.ranks.worker.process_settings import (
    LIMITS,
    Output,
    Setting,
    identity,
    of_a_fresh_process,
    of_a_loaded_subject,
)

MOST_HELPERS = 8
"""Child processes and Python threads that a subject may keep from case to case, such as a compiler's."""
MOST_DESCRIPTORS = 128
"""Descriptors that a subject may keep open from case to case."""
_NAMESPACES: tuple[ModuleType | type, ...] = (
    *(torch.nn.functional, dist, c10d, functional),
    *(torch.Tensor, torch.nn.Module, torch.autograd.Function, batchnorm._BatchNorm, torch.nn.SyncBatchNorm),
)


class ProcessState:
    """The state in which a rank started, and the way back to it."""

    def __init__(self) -> None:
        self._folder = os.getcwd()  # noqa: PTH109 - compared as a string, twice a case
        self._output = Output()
        self._fresh = of_a_fresh_process()
        self._loaded: tuple[Setting, ...] = ()
        self._namespaces: tuple[_Namespace, ...] = ()
        self._descriptors: dict[int, tuple[int, int]] = {}
        self._world = dist.group.WORLD if dist.is_initialized() else None
        self._checks: tuple[tuple[str, Callable[[], Any], Any], ...] = ()

    def restore(self, seed: int) -> None:
        """Put settings right and seed every generator, before a case."""
        if not self._loaded:
            self._look()
        self._output.restore()
        for setting in (*self._fresh, *self._loaded):
            setting.restore()
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the subject may use the global generator
        torch.default_generator.manual_seed(seed % 2**63)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed % 2**63)

    def mutilated(self) -> bool:
        """Return whether the subject has closed a descriptor that this process cannot do without."""
        return any(identity(number) != file for number, file in self._descriptors.items())

    def changed(self) -> str:
        """Return, after a case, what has changed that cannot be put right; nothing if all is well."""
        if not dist.is_initialized() or dist.group.WORLD is not self._world:
            return "process group"
        for name, read, wanted in self._checks:
            if read() != wanted:
                return name
        for namespace in self._namespaces:
            if namespace.changed():
                return f"functions of {namespace.name}"
        if self.mutilated():
            return "descriptors"
        return _leftovers()

    def _look(self) -> None:
        """Take what is found now, once the subject is loaded, as what must stay."""
        self._loaded = of_a_loaded_subject(self._folder)
        self._namespaces = tuple(_Namespace(one) for one in _NAMESPACES)
        open_now = [int(path.name) for path in Path("/proc/self/fd").iterdir()] if _PROC else []
        found = {number: identity(number) for number in open_now if number > 2}
        self._descriptors = {number: file for number, file in found.items() if file is not None}
        self._checks = tuple((name, read, read()) for name, read in _CHECKS)


class _Namespace:
    """The callables of a module or class; those that a module gains by a late import do not count.

    Nor does what dynamo puts in their place when it first compiles something: that is how torch works then.
    """

    def __init__(self, owner: ModuleType | type) -> None:
        self.name = f"{owner.__module__}.{owner.__name__}" if isinstance(owner, type) else owner.__name__
        self._owner = owner
        self._look()

    def _look(self) -> None:
        self._before = dict(vars(self._owner))
        values = tuple(self._before.values())
        indexes = [index for index, value in enumerate(values) if callable(value)]
        self._pick = itemgetter(*indexes)
        self._size = len(values)
        self._callables = self._pick(values)

    def changed(self) -> bool:
        """Return whether one was replaced or removed, or a class has gained one."""
        values = tuple(vars(self._owner).values())
        grown = len(values) != self._size if isinstance(self._owner, type) else len(values) < self._size
        if not grown and self._pick(values) == self._callables:
            return False
        if self._changed_by_dynamo_alone():
            self._look()
            return False
        return True

    def _changed_by_dynamo_alone(self) -> bool:
        before, now = self._before, vars(self._owner)
        replaced = [name for name, value in before.items() if callable(value) and now.get(name) is not value]
        gained = [name for name in now if name not in before] if isinstance(self._owner, type) else []
        return before.keys() <= now.keys() and all(
            name in _DYNAMO_NAMES or _of_dynamo(now[name]) for name in (*replaced, *gained)
        )


def _of_dynamo(value: object) -> bool:
    return str(getattr(value, "__module__", "")).startswith("torch._dynamo.")


def _leftovers() -> str:
    """Return what a subject has left running or open beyond what it may keep."""
    try:
        number = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return "open descriptors"
    os.close(number)
    if number > MOST_DESCRIPTORS:
        return "open descriptors"
    if threading.active_count() > MOST_HELPERS:
        return "threads"
    return "child processes" if _children() > MOST_HELPERS else ""


def _children() -> int:
    """Return how many child processes there are; asking the kernel whether there are any takes least."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    count = 0
    with contextlib.suppress(OSError):
        for children in Path("/proc/self/task").glob("*/children"):
            count += len(children.read_text().split())
    return count


def _mode_depths() -> tuple[int, ...]:
    """Return how many function and dispatch modes are active, as far as this torch can tell."""
    names = ("_len_torch_function_stack", "_len_torch_dispatch_stack")
    return tuple(int(getattr(torch._C, name)()) for name in names if hasattr(torch._C, name))


def _hooks() -> int:
    """Return how many hooks run in every module of the process."""
    return sum(len(hooks) for hooks in _HOOKS)


_PROC = Path("/proc/self/fd").is_dir()
_DYNAMO_NAMES = frozenset({"___needs_generation_tag_patch"})  # torch._dynamo.mutation_guard
_UNTRACED = True
_SIGNALS = (TRACE_SIGNAL, signal.SIGSEGV, signal.SIGABRT, signal.SIGALRM, signal.SIGINT, signal.SIGTERM)
_HOOKS = tuple(
    hooks for name, hooks in vars(module).items() if name.startswith("_global_") and isinstance(hooks, dict)
)
_CHECKS: tuple[tuple[str, Callable[[], Any]], ...] = (
    ("modes", _mode_depths),
    ("autocast", lambda: torch.is_autocast_enabled("cpu")),
    ("inference mode", torch.is_inference_mode_enabled),
    ("hooks of all modules", _hooks),
    ("hooks of saved tensors", lambda: torch._C._autograd._top_saved_tensors_default_hooks(_UNTRACED)),
    ("priority", lambda: os.getpriority(os.PRIO_PROCESS, 0)),
    ("signal handlers", lambda: [faulthandler.is_enabled(), *map(signal.getsignal, _SIGNALS)]),
    ("limits", lambda: [resource.getrlimit(kind)[1] for kind in LIMITS]),
)

"""Subjects that end their process, or an exception ends them."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

import torch
from victim import TRIGGER, Hostile


class Aborts(Hostile):
    """Rank 0 calls `os.abort` after some last words."""

    def attack(self):
        if self.rank == 0:
            sys.stdout.write("these were its last words")
            os.abort()


class _AbortsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        os.abort()


class AbortsInBackward(Hostile):
    """Rank 1 aborts in backward, where rank 0 waits for it in the collective."""

    def strike(self, x):
        y = super().strike(x)
        return _AbortsInBackward.apply(y) if self.rank == 1 else y


class Segfaults(Hostile):
    """Reads address 0."""

    def attack(self):
        ctypes.string_at(0)


class OverflowsTheStack(Hostile):
    """Recurses without a limit, until the C stack is used up."""

    def attack(self):
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
        sys.setrecursionlimit(10**9)
        _deep([])


def _deep(inside):
    for _ in map(_deep, [[inside]]):
        pass


class Recurses(Hostile):
    """Recurses to the limit of Python."""

    def attack(self):
        self.attack()


class Exits(Hostile):
    """Calls `sys.exit(0)`."""

    def attack(self):
        sys.exit(0)


class ExitsAtOnce(Hostile):
    """Calls `os._exit(0)`: an exit code that says all is well."""

    def attack(self):
        os._exit(0)


class BecomesAnother(Hostile):
    """Replaces its process by `/bin/true`."""

    def attack(self):
        os.execv("/bin/true", ["/bin/true"])


class Interrupts(Hostile):
    """Raises KeyboardInterrupt."""

    def attack(self):
        raise KeyboardInterrupt


class Terminates(Hostile):
    """Sends SIGTERM to itself."""

    def attack(self):
        os.kill(os.getpid(), signal.SIGTERM)


class KillsItsPeer(Hostile):
    """Rank 0 kills all other ranks of its group."""

    def attack(self):
        if self.rank == 0:
            server = os.getppid()
            ranks = Path(f"/proc/{server}/task/{server}/children").read_text().split()
            for pid in map(int, ranks):
                if pid != os.getpid() and _folder_of(pid) == _folder_of(os.getpid()):
                    os.kill(pid, signal.SIGKILL)


def _folder_of(pid):
    return Path(f"/proc/{pid}/fd/1").readlink().parent


class FillsMemory(Hostile):
    """Sets itself a limit of memory (RLIMIT_AS), and takes memory until there is no more."""

    def attack(self):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * os.sysconf("SC_PAGESIZE") + (256 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
        taken = []
        while True:
            taken.append(torch.ones(1 << 20))


class ClosesEverything(Hostile):
    """Closes all its descriptors, the connection to us included."""

    def attack(self):
        os.closerange(0, 1024)


class ReturnsTwice(Hostile):
    """Forks in rank 0, and both processes return."""

    def attack(self):
        if self.rank == 0:
            os.fork()


class Raises(Hostile):
    """Every rank raises the same."""

    def attack(self):
        raise RuntimeError("this is hostile")


class RaisesOnOneRank(Hostile):
    """Rank 1 raises, rank 0 waits for it in the collective."""

    def attack(self):
        if self.rank == 1:
            raise ValueError("only on this rank")


class RaisesInConstructor(Hostile):
    """Raises while it is built."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1, *rest, **options):
        if momentum == TRIGGER:
            raise RuntimeError("never built")
        super().__init__(num_features, eps, momentum, *rest, **options)


class _UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError("no")


class Unspeakable(Hostile):
    """Raises an exception whose `str` raises."""

    def attack(self):
        raise _UnspeakableError


class _ExitingError(Exception):
    def __str__(self):
        return sys.exit(3)

    __repr__ = __str__


class ExitsWhenAsked(Hostile):
    """Raises an exception whose `str` exits."""

    def attack(self):
        raise _ExitingError


class Garrulous(Hostile):
    """Raises an exception with a message of 10 MB, part of it no valid text."""

    def attack(self):
        raise RuntimeError("\udcff" + "x" * 10_000_000)


class NoException(Hostile):
    """Raises what `except Exception` does not catch."""

    def attack(self):
        raise GeneratorExit

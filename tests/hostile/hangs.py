"""Subjects that do not come back, each in its own way."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time

import torch
import torch.distributed as dist
from victim import FOREVER, TRIGGER, Hostile


class _SleepsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        time.sleep(FOREVER)
        return g


class InForward(Hostile):
    """Sleeps in forward."""

    def attack(self):
        time.sleep(FOREVER)


class InBackward(Hostile):
    """Sleeps in backward, before the collective of backward."""

    def strike(self, x):
        return _SleepsInBackward.apply(super().strike(x))


class InCollective(Hostile):
    """Every rank receives from the other, and none sends."""

    def attack(self):
        dist.recv(torch.empty(1), src=1 - self.rank)


class OnOneRank(Hostile):
    """Rank 1 sleeps, rank 0 waits for it in the collective."""

    def attack(self):
        if self.rank == 1:
            time.sleep(FOREVER)


class SkipsTheCollective(Hostile):
    """Rank 1 returns without the collective that rank 0 waits in."""

    def strike(self, x):
        return x.clone() if self.rank == 1 else super().strike(x)


class InConstructor(Hostile):
    """Sleeps while it is built."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1, *rest, **options):
        if momentum == TRIGGER:
            time.sleep(FOREVER)
        super().__init__(num_features, eps, momentum, *rest, **options)


class AtTheThirdStep(Hostile):
    """Sleeps in the third forward of a case."""

    def attack(self):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 3:
            time.sleep(FOREVER)


class WithTheGil(Hostile):
    """Never releases the interpreter lock, in C."""

    def attack(self):
        ctypes.PyDLL(None).sleep(FOREVER)


class Busy(Hostile):
    """Loops in Python without end."""

    def attack(self):
        while True:
            pass


class BusyInC(Hostile):
    """Loops in C without end, and never releases the interpreter lock."""

    def attack(self):
        sum(iter(int, 1))


class AtALock(Hostile):
    """Waits for a lock that it holds itself."""

    def attack(self):
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()


class Masked(Hostile):
    """Blocks every signal, then sleeps."""

    def attack(self):
        signal.pthread_sigmask(signal.SIG_SETMASK, range(1, signal.NSIG))
        time.sleep(FOREVER)


class Stopped(Hostile):
    """Rank 0 stops its own process (SIGSTOP)."""

    def attack(self):
        if self.rank == 0:
            os.kill(os.getpid(), signal.SIGSTOP)


class WithADaemon(Hostile):
    """Starts a process in a session of its own, which would outlive the rank, and sleeps."""

    def attack(self):
        if not os.fork():
            os.setsid()
            time.sleep(FOREVER)
            os._exit(0)
        time.sleep(FOREVER)


class OtherCollectives(Hostile):
    """Rank 0 waits at a barrier for ranks that are in another collective."""

    def attack(self):
        if self.rank == 0:
            dist.barrier()

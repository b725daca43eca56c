"""Subjects of the tests: a local batch norm, and hostile ones, each for one way in which a rank can end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist


class Local(torch.nn.Module):
    """Plain batch norm on each rank."""

    syncbn_verify = {"domain": {"dims": [2, 3, 4, 5]}, "grade": "B"}  # noqa: RUF012

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        process_group=None,
        device=None,
        dtype=None,
        *,
        bias=True,
    ):
        super().__init__()
        kwargs = {"device": device, "dtype": dtype}
        self.eps, self.momentum, self.process_group = eps, momentum, process_group
        self.weight = torch.nn.Parameter(torch.ones(num_features, **kwargs)) if affine else None
        self.bias = torch.nn.Parameter(torch.zeros(num_features, **kwargs)) if affine and bias else None
        if track_running_stats:
            self.register_buffer("running_mean", torch.zeros(num_features, **kwargs))
            self.register_buffer("running_var", torch.ones(num_features, **kwargs))
            self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))
        else:
            self.running_mean = self.running_var = self.num_batches_tracked = None

    def forward(self, x):
        if self.num_batches_tracked is not None and self.training:
            self.num_batches_tracked += 1
        return torch.nn.functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            self.momentum or 0.0,
            self.eps,
        )


class Synced(Local):
    """Batch norm that all-reduces something in forward and in backward."""

    def forward(self, x):
        dist.all_reduce(torch.ones(3, device=x.device), group=self.process_group)
        return _ReduceInBackward.apply(super().forward(x), self.process_group)


class _ReduceInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        total = torch.ones(2, dtype=torch.float64)
        dist.all_reduce(total, op=dist.ReduceOp.MAX, group=ctx.group)
        return g.clone(), None


class HangsOnEmpty(Synced):
    """An empty rank never comes back, the others wait for it."""

    def forward(self, x):
        while not x.numel():
            time.sleep(0.01)
        return super().forward(x)


class HangsWithTheGil(Synced):
    """Rank 0 hangs in C without ever releasing the interpreter lock."""

    def forward(self, x):
        if dist.get_rank() == 0:
            sum(iter(int, 1))  # endless, and in C
        return super().forward(x)


class _Crash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if dist.get_rank() == 0:
            sys.stdout.write("going down")
            os.abort()
        dist.barrier()
        return g


class AbortsInBackward(Local):
    """Rank 0 aborts in backward, the others wait for it in a collective."""

    def forward(self, x):
        return _Crash.apply(super().forward(x))


class Exits(Local):
    """Leaves by the door that the rank asks for: by the momentum of the case."""

    def forward(self, x):
        if dist.get_rank() == 0:
            if self.momentum == 0.0:
                sys.exit(3)
            if self.momentum == 1.0:
                os._exit(3)
            if self.momentum == 0.5:
                raise KeyboardInterrupt
            if self.momentum == 0.25:
                import ctypes

                ctypes.string_at(0)
        return super().forward(x)


class RaisesOnRankOne(Synced):
    """Rank 1 raises, the others wait for it in a collective."""

    def forward(self, x):
        if dist.get_rank() == 1:
            raise ValueError("not on this rank")
        return super().forward(x)


class RefusesEverywhere(Synced):
    """Every rank raises before any collective."""

    def forward(self, x):
        dtype = str(x.dtype).removeprefix("torch.")
        raise ValueError(f"Expected something else than {tuple(x.shape)} {dtype}")


class _UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError("no")


class Unspeakable(Local):
    """Raises an exception whose str raises."""

    def forward(self, x):
        raise _UnspeakableError


class ReturnsATuple(Local):
    """Returns something that is not a tensor."""

    def forward(self, x):
        return (super().forward(x),)


class WritesItsInput(Local):
    """Changes input, cotangent and weight in place."""

    def forward(self, x):
        with torch.no_grad():
            self.weight += 1
            x.data += 1
        return _WritesItsCotangent.apply(super().forward(x))


class _WritesItsCotangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        g += 1
        return g.clone()


class Dirty(Local):
    """Leaves its process changed, in ways that can be undone."""

    def forward(self, x):
        assert torch.get_default_dtype() == torch.float32
        assert torch.get_num_threads() == 1
        noise = torch.rand(x.shape[1], dtype=x.dtype)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        torch.set_flush_denormal(True)
        torch.use_deterministic_algorithms(True)
        os.chdir("/")
        return super().forward(x) + noise.reshape(1, -1, *[1] * (x.dim() - 2))


class LeavesAMode(Local):
    """Leaves its process changed for good."""

    def forward(self, x):
        torch.set_default_device("cpu")
        return super().forward(x)


class Daemon(Local):
    """Starts a process of its own session, which would outlive the rank, and hangs."""

    def forward(self, x):
        import subprocess

        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(601)"], start_new_session=True)
        time.sleep(600)


class HangsLater(Local):
    """Hangs, with the interpreter locked, when the momentum is None."""

    def forward(self, x):
        if self.momentum is None:
            sum(iter(int, 1))
        return super().forward(x)


class Sleeps(Local):
    """Takes half a second."""

    def forward(self, x):
        time.sleep(0.5)
        return super().forward(x)


class SleepsLonger(Local):
    """Takes a second and a half."""

    def forward(self, x):
        time.sleep(1.5)
        return super().forward(x)


class Waits(Local):
    """Leaves a mark in the gate of the test (`conftest.Gate`), and goes on once that is open."""

    def forward(self, x):
        gate = Path(os.environ["TEST_GATE"])
        (gate / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        while not (gate / "open").exists():
            time.sleep(0.01)
        return super().forward(x)


class Works(Local):
    """Takes half a second of a core."""

    def forward(self, x):
        end = time.thread_time() + 0.5
        while time.thread_time() < end:
            pass
        return super().forward(x)


class Slow(Local):
    """Takes a second of a core, and gets on."""

    def forward(self, x):
        end, number = time.thread_time() + 1.0, 0
        while time.thread_time() < end:
            number += 1
        return super().forward(x)


class Spins(Local):
    """Loops without end, through a few places."""

    def forward(self, x):
        def over():
            return False

        while not over():
            pass
        return super().forward(x)


class Counts(Local):
    """Loops without end, and counts."""

    def forward(self, x):
        number = 0
        while True:
            number += 1


class Identity(Local):
    """Gives its input back."""

    def forward(self, x):
        return x.view_as(x)


class Talkative(Local):
    """Issues one collective of each kind, the last ones functional and in inference mode."""

    def forward(self, x):
        from torch.distributed import _functional_collectives as functional

        world, some = dist.get_world_size(), torch.ones(2)
        dist.all_gather([torch.empty(2) for _ in range(world)], some)
        dist.all_gather_into_tensor(torch.empty(2 * world), some)
        dist.broadcast(some, 0)
        dist.reduce(some, 0)
        dist.barrier()
        functional.all_reduce(some, "sum", dist.group.WORLD).sum()
        with torch.inference_mode():
            dist.all_reduce(torch.ones(2))
        return super().forward(x)


class SendsWithoutReceiver(Local):
    """Rank 0 starts a collective that it never waits for, and that nobody else joins."""

    def forward(self, x):
        if dist.get_rank() == 0:
            self.work = dist.all_reduce(torch.ones(2), async_op=True)
        return super().forward(x)


class TakesLittle(torch.nn.Module):
    """Accepts neither device nor dtype nor group."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.inner = eps
        self.weight = torch.nn.Parameter(torch.ones(num_features))
        self.bias = torch.nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        return torch.nn.functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.inner)


NOT_CALLABLE = 3


def no_module(num_features, **options):
    return num_features


def unplain(num_features):
    return None


unplain.syncbn_verify = {"domain": {"dims": object()}}


class Moody(Synced):
    """By its data's sum over the ranks: refuses everywhere, leaves a mode, or is merely slow, by rank."""

    def forward(self, x):
        mood = x.detach().double().abs().sum()
        dist.all_reduce(mood)
        chosen = int(mood * 1e6) % 16
        time.sleep(0.002 * ((chosen + 3 * dist.get_rank()) % 5))
        if chosen < 4:
            raise ValueError("in a bad mood")
        if chosen == 4 and dist.get_rank() == 1:
            torch.set_default_dtype(torch.float64)
        if chosen == 5 and dist.get_rank() == 0:
            raise ValueError("a peer waits")
        result = super().forward(x)
        time.sleep(0.001 * ((chosen + dist.get_rank()) % 3))
        return result


class _Reduced(Local):
    """Batch norm that all-reduces something of a size that varies; compiled, that breaks its graph."""

    def forward(self, x):
        dist.all_reduce(torch.ones(x.shape[0], device=x.device).sum(), group=self.process_group)
        return super().forward(x)


def compiled(num_features, **options):
    """Return a compiled module, of one class, so that its code is compiled again only where it must be."""
    return torch.compile(_Reduced(num_features, **options), backend="eager")


class RefusesLate(Synced):
    """Every rank refuses, the others seconds after rank 0: they have more to look at first."""

    def forward(self, x):
        if dist.get_rank():
            until = time.process_time() + 4.0
            while time.process_time() < until:
                x.sum()
        raise ValueError("not this input")


class WorksOnAlone(Synced):
    """Rank 0 raises, and the others never come to an end, nor to a collective."""

    def forward(self, x):
        if dist.get_rank() == 0:
            raise ValueError("not on this rank")
        while True:
            x.sum()

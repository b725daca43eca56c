"""Subjects that return what is right, and leave their process changed."""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.modules.module import register_module_forward_hook
from victim import FOREVER, Hostile


class Leaves(Hostile):
    """Is right first, then hostile."""

    def strike(self, x):
        y = super().strike(x)
        self.leave()
        return y

    def leave(self):
        """Change something, and leave it so."""


class DefaultDtype(Leaves):
    """Default dtype float64."""

    def leave(self):
        torch.set_default_dtype(torch.float64)


class Seeds(Leaves):
    """All generators of random numbers seeded."""

    def leave(self):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002


class Threads(Leaves):
    """Three threads in torch."""

    def leave(self):
        torch.set_num_threads(3)


class Deterministic(Leaves):
    """Deterministic algorithms only."""

    def leave(self):
        torch.use_deterministic_algorithms(True)


class NoGradients(Leaves):
    """Gradients off, after its own forward."""

    def leave(self):
        torch.set_grad_enabled(False)


class Anomalies(Leaves):
    """Detection of anomalies on."""

    def leave(self):
        torch.autograd.set_detect_anomaly(True)


class Subnormals(Leaves):
    """Subnormal numbers flushed to zero."""

    def leave(self):
        torch.set_flush_denormal(True)


class Environment(Leaves):
    """Environment variables added, changed and removed."""

    def leave(self):
        os.environ["OMP_NUM_THREADS"] = "64"
        os.environ["HOSTILE"] = "1"
        os.environ.pop("PATH", None)


class Folder(Leaves):
    """A working directory that is gone."""

    def leave(self):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)


class RemovesFolders(Leaves):
    """The folder of all rank groups removed."""

    def leave(self):
        shutil.rmtree(Path("/proc/self/fd/1").readlink().parents[1], ignore_errors=True)


class Umask(Leaves):
    """No permissions for new files."""

    def leave(self):
        os.umask(0o777)


class SysPath(Leaves):
    """An empty `sys.path`."""

    def leave(self):
        sys.path.clear()


class Masked(Leaves):
    """All signals blocked."""

    def leave(self):
        signal.pthread_sigmask(signal.SIG_SETMASK, range(1, signal.NSIG))


class Alarm(Leaves):
    """An alarm that will end the process in a second."""

    def leave(self):
        signal.setitimer(signal.ITIMER_REAL, 1.0)


class SilentOutput(Leaves):
    """Standard output and error closed."""

    def leave(self):
        os.close(1)
        os.close(2)


class NoOutput(Leaves):
    """`sys.stdout` closed, `sys.stderr` None."""

    def leave(self):
        sys.stdout.close()
        sys.stderr = None


class Errors(Leaves):
    """Warnings and floating-point errors of numpy turned into exceptions."""

    def leave(self):
        warnings.simplefilter("error")
        np.seterr(all="raise")


class Shallow(Leaves):
    """A recursion limit of little more than it uses."""

    def leave(self):
        depth, frame = 0, sys._getframe()
        while frame is not None:
            depth, frame = depth + 1, frame.f_back
        sys.setrecursionlimit(depth + 40)


class Traced(Leaves):
    """A trace function, and no garbage collection."""

    def leave(self):
        sys.settrace(lambda *_: None)
        gc.disable()


class OneCore(Leaves):
    """Bound to one core."""

    def leave(self):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class FewDescriptors(Leaves):
    """A limit of descriptors below what is open."""

    def leave(self):
        resource.setrlimit(resource.RLIMIT_NOFILE, (8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


class Slow(Leaves):
    """The lowest priority."""

    def leave(self):
        os.setpriority(os.PRIO_PROCESS, 0, 19)


class HardLimit(Leaves):
    """A hard limit of descriptors."""

    def leave(self):
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


class DefaultDevice(Leaves):
    """Default device meta."""

    def leave(self):
        torch.set_default_device("meta")


class Autocast(Leaves):
    """Autocast on."""

    def leave(self):
        torch.set_autocast_enabled("cpu", True)


class Inference(Leaves):
    """Inference mode entered, in evaluation."""

    def leave(self):
        self.mode = torch.inference_mode()
        self.mode.__enter__()


class DestroysTheGroup(Leaves):
    """Process group destroyed, in evaluation."""

    def leave(self):
        dist.destroy_process_group()


class Patches(Leaves):
    """`torch.distributed.all_reduce` replaced by one that does nothing, after its own collectives."""

    def strike(self, x):
        y = Hostile.strike(self, x)
        if x.requires_grad:
            x.register_hook(lambda _: setattr(dist, "all_reduce", lambda *_, **__: None))
        return y


class PatchesModules(Leaves):
    """`torch.nn.Module.__call__` replaced."""

    def leave(self):
        torch.nn.Module.__call__ = lambda self, x: x


class Hooks(Leaves):
    """A hook that runs in every module."""

    def leave(self):
        register_module_forward_hook(lambda module, arguments, output: output + 1)


class SavedTensors(Leaves):
    """A hook on every saved tensor."""

    def leave(self):
        torch._C._autograd._push_saved_tensors_default_hooks(lambda x: x, lambda x: x)


class Handlers(Leaves):
    """A handler of signals of its own, and no faulthandler."""

    def leave(self):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        faulthandler.disable()


class Children(Leaves):
    """50 child processes."""

    def leave(self):
        self.children = [subprocess.Popen(["sleep", str(FOREVER)]) for _ in range(50)]


class Orphans(Leaves):
    """50 processes that are no longer its children."""

    def leave(self):
        for _ in range(50):
            subprocess.run(["sh", "-c", f"setsid sleep {FOREVER} >/dev/null 2>&1 &"], check=True)


class ManyThreads(Leaves):
    """20 threads that sleep."""

    def leave(self):
        for _ in range(20):
            threading.Thread(target=time.sleep, args=(FOREVER,), daemon=True).start()


class Descriptors(Leaves):
    """300 open files."""

    def leave(self):
        self.__class__.kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]


class ClosesFiles(Leaves):
    """Every descriptor that is no socket and no queue of events closed."""

    def leave(self):
        for path in tuple(Path("/proc/self/fd").iterdir()):
            if path.is_symlink() and int(path.name) > 2 and path.readlink().is_absolute():
                os.close(int(path.name))


class Floods(Leaves):
    """1 GB on standard output of rank 0."""

    def leave(self):
        if self.rank == 0:
            for _ in range(1024):
                os.write(1, b"x" * (1 << 20))

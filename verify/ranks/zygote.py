"""The zygote: a process that imports torch once, and forks servers of ranks from itself for several parents.

Rules
-----
- It begins to import when it is asked for the first server: until then it costs nothing.
- It ends with who started it, however that ends. The servers do not: each ends with its own parent.
- A parent asks it only if a server of its own would be the same (`likeness`): the same interpreter, packages,
  limits, and variables that matter while Python and torch start. What may differ, the other variables, the
  folder and the path among it, a server takes over from its parent.
- Whoever cannot get a server from it starts one: it saves time, and nothing depends on it.

Theory of operation
-------------------
Importing torch takes 3 s of a core, more than all the rest of a short run. The workers of a distributed test
run would do it at the same time, each on a core that the others want. So who starts the workers opens a
zygote and names its folder in the environment, where they find it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from verify.entry import home, program

VARIABLE = "SYNCBN_VERIFY_ZYGOTE"
"""Names the zygote's folder."""
SOCKET = "socket"
_LIKENESS = "likeness"
_AT_START = (
    *("PYTHON", "LD_", "LC_", "LANG", "TZ", "OMP_", "MKL_", "KMP_", "GOMP_", "TORCH", "PYTORCH", "ATEN"),
    *("CUDA", "NVIDIA", "NCCL", "GLOO", "TRITON", "MALLOC", "GLIBC"),
)
"""How variables begin that matter while Python or torch start."""
_LEAVE_SECONDS = 10.0


def likeness() -> str:
    """Return what must be the same in two processes for a server of one to serve as well as the other's."""
    limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name[:7] == "RLIMIT_"]
    variables = {name: value for name, value in os.environ.items() if name.startswith(_AT_START)}
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    return json.dumps([sys.executable, str(home()), nice, limits, variables], sort_keys=True)


class Zygote:
    """A zygote for this process and those it starts; a context manager.

    Args:
        dynamo: It imports `torch._dynamo`, too, which each server would on the first case that needs it.
    """

    def __init__(self, *, dynamo: bool = False) -> None:
        self._dynamo = dynamo

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="syncbn-verify-")
        folder = Path(self._folder.name)
        (folder / _LIKENESS).write_text(likeness(), "utf-8")
        self._owner, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / SOCKET))
            listener.listen(64)
            fds = (listener.fileno(), theirs.fileno())
            words = ["dynamo" if self._dynamo else "", *map(str, fds)]
            self._process = subprocess.Popen(
                program("verify.ranks.zygote_process", *words, names=("verify", "properties")),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,
            )
        os.environ[VARIABLE] = str(folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def close(self) -> None:
        """End it, and forget its name; servers go on until their parents end."""
        os.environ.pop(VARIABLE, None)
        self._owner.close()
        try:
            self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def found() -> Path | None:
    """Return the socket of a zygote that may serve this process; None if there is none."""
    folder = os.environ.get(VARIABLE)
    if not folder or not hasattr(os, "pidfd_open"):
        return None
    with contextlib.suppress(OSError):
        if (Path(folder) / _LIKENESS).read_text("utf-8") == likeness():
            return Path(folder) / SOCKET
    return None

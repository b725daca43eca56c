"""The server: a process that has imported torch once and forks ranks from itself in milliseconds.

Rules
-----
- It never runs a subject's code, starts no thread and no CUDA context: a fork of it is a clean start.
- It is the parent of all ranks: it alone kills and reaps them, so that no process id is ever reused under it.
- When its connection to the parent ends, whatever the cause, it kills every rank, removes the folder and
  leaves.

Theory of operation
-------------------
Each rank leads a session of its own (`setsid`): a terminal's Ctrl-C does not reach it, and killing its
process group takes its children along. On Linux it also asks for SIGKILL when the server dies
(`PR_SET_PDEATHSIG`), and the server is
a subreaper: what escapes from a rank's process group becomes the server's child and is killed with the group.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib.util
import io
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from verify.ranks.messages import (
    TRACE_SIGNAL,
    CountDevices,
    Devices,
    Frames,
    FromServer,
    Spawn,
    Spawned,
    Stop,
    Stopped,
    ToServer,
    frame,
)
from verify.ranks.speed import slowness
from verify.ranks.worker.scheduling import BATCH, use_policy

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TRACE_SECONDS, _TRACE_PAUSE = 1.0, 0.02
_REAP_SECONDS, _END_SECONDS = 5.0, 1.0
_STRAY_ROUNDS = 8
_LOOK_SECONDS = 0.25
_EACH = 3
"""Descriptors that a rank is given: its connection, its memory file, its watch's connection."""
_DESCRIPTORS = 64 * _EACH


def main() -> None:
    """Serve the connection whose descriptor and folder are the last two arguments, until it ends."""
    serve(socket.socket(fileno=int(sys.argv[-2])), Path(sys.argv[-1]))


def serve(connection: socket.socket, folder: Path, *, slow: float | None = None) -> None:
    """Be the server of `connection` until it ends, in this process.

    Args:
        connection: To the parent.
        folder: That it shares with the ranks; removed at the end.
        slow: By which factor this machine is slow; None in a process that has yet to import torch.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.environ.update(environment())
    server = Server(connection)
    try:
        if slow is None:
            with leaving_with(connection):
                preload()
            slow = slowness()
            settle()
        server.slowness = slow
        server.serve()
    finally:
        if os.getpid() == server.pid:
            server.end_all()
            shutil.rmtree(folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """Return the variables that a server sets for its ranks, before it imports torch."""
    found = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if sys.platform == "linux":
        found |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    return found


class Server:
    """The forked ranks and the connection that asks for them.

    Attributes:
        slowness: The factor by which limits are longer on this machine.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.pid = os.getpid()
        self.slowness = 1.0
        self._connection = connection
        self._ranks: dict[int, Path] = {}

    def serve(self) -> None:
        """Answer one request after the other until the parent is gone."""
        decoder = msgspec.json.Decoder(ToServer)
        frames, descriptors = Frames(), array.array("i")
        while True:
            body = frames.next()
            if body is None:
                data, some, _, _ = socket.recv_fds(self._connection, 1 << 16, _DESCRIPTORS)
                if not data:
                    return
                descriptors.extend(some)
                frames.feed(data)
                continue
            reply = self._answer(decoder.decode(body), descriptors)
            self._connection.sendall(frame(reply))

    def end_all(self) -> None:
        """Kill and reap every rank and what they left behind."""
        self._kill(tuple(self._ranks))

    def _answer(self, request: ToServer, descriptors: array.array[int]) -> FromServer:
        match request:
            case Spawn():
                taken = descriptors[: _EACH * request.world_size]
                del descriptors[: _EACH * request.world_size]
                return self._spawn(request, list(taken))
            case Stop():
                return self._stop(request)
            case CountDevices():
                return Devices(cuda=_count_devices())

    def _spawn(self, request: Spawn, descriptors: list[int]) -> Spawned:
        if request.dynamo and "torch._dynamo" not in sys.modules and may_import_dynamo():
            with leaving_with(self._connection):
                preload_dynamo()
            settle()
        pids: list[int] = []
        try:
            for rank in range(request.world_size):
                sys.stdout.flush()
                sys.stderr.flush()
                pid = os.fork()
                if not pid:
                    self._become_rank(descriptors, rank, Path(request.folder))
                pids.append(pid)
        except OSError as error:
            self._kill(tuple(pids))
            return Spawned(error=f"cannot fork rank {len(pids)}: {error}")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        for rank, pid in enumerate(pids):
            self._ranks[pid] = Path(request.folder) / f"rank-{rank}.stack"
        return Spawned(pids=tuple(pids), slowness=self.slowness)

    def _become_rank(self, descriptors: list[int], rank: int, folder: Path) -> None:
        """Turn the forked process into a rank; never returns."""
        code = 70
        try:
            mine = descriptors[_EACH * rank : _EACH * (rank + 1)]
            for descriptor in descriptors:
                if descriptor not in mine:
                    os.close(descriptor)
            self._connection.close()
            _stand_alone(self.pid, folder / f"rank-{rank}.log")
            from verify.ranks.worker import loop

            loop.main(socket.socket(fileno=mine[0]), mine[1], socket.socket(fileno=mine[2]))
            code = 0
        except BaseException:
            with contextlib.suppress(BaseException):
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
        finally:
            os._exit(code)

    def _stop(self, request: Stop) -> Stopped:
        self._trace([pid for pid in request.trace if pid in self._ranks])
        ended = _await_end([pid for pid in request.dead if pid in self._ranks])
        codes = self._kill(request.pids)
        return Stopped(codes={pid: codes[pid] for pid in ended if pid in codes})

    def _trace(self, pids: list[int]) -> None:
        """Have ranks that end now write their stacks down; wait until they have, but one may mask the signal.

        This is faulthandler's dump, without the interpreter lock: it may crash its process.
        """
        before = {pid: _size(self._ranks[pid]) for pid in pids}
        sizes = before
        for pid in pids:
            os.kill(pid, TRACE_SIGNAL)
        limit = time.monotonic() + _TRACE_SECONDS
        while pids and time.monotonic() < limit:
            time.sleep(_TRACE_PAUSE)
            last, sizes = sizes, {pid: _size(self._ranks[pid]) for pid in pids}
            if sizes == last and all(sizes[pid] != before[pid] for pid in pids):
                return

    def _kill(self, pids: tuple[int, ...]) -> dict[int, int]:
        """Kill and reap these ranks with their children; return exit codes, negative for signals."""
        for pid in pids:
            # A rank that has not yet called setsid leads no process group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        codes = _reap(pids)
        for pid in pids:
            self._ranks.pop(pid, None)
        self._kill_strays()
        return codes

    def _kill_strays(self) -> None:
        """Kill children that are no ranks: orphans of killed ranks that left their process group."""
        with contextlib.suppress(OSError, ValueError):
            for _ in range(_STRAY_ROUNDS):
                children = Path(f"/proc/self/task/{self.pid}/children").read_text().split()
                strays = {int(child) for child in children} - self._ranks.keys()
                if not strays:
                    return
                for pid in strays:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
                _reap(tuple(strays))


def _await_end(pids: list[int]) -> list[int]:
    """Return which of these processes have ended by themselves, or do so in a moment: their codes tell."""
    limit = time.monotonic() + _END_SECONDS
    while True:
        ended = [pid for pid in pids if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)]
        if len(ended) == len(pids) or time.monotonic() >= limit:
            return ended
        time.sleep(0.001)


def _reap(pids: tuple[int, ...]) -> dict[int, int]:
    """Wait for killed children, return their exit codes; one held uninterruptibly by a driver is left."""
    limit = time.monotonic() + _REAP_SECONDS
    codes: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            while pid not in codes and time.monotonic() < limit:
                reaped, status = os.waitpid(pid, os.WNOHANG)
                if reaped:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                else:
                    time.sleep(0.001)
    return codes


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


@contextlib.contextmanager
def leaving_with(connection: socket.socket) -> Iterator[None]:
    """Leave as soon as the other side of `connection` is gone, also while something else is done inside."""
    hung_up = select.poll()
    hung_up.register(connection, 0)

    def look(*_: object) -> None:
        if hung_up.poll(0):
            sys.exit(0)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def preload() -> None:
    """Import what every rank needs, and what its first backward would import (0.3 s)."""
    import torch
    import torch.distributed._functional_collectives
    import torch.fx.experimental.symbolic_shapes
    import torch.utils.checkpoint

    from verify.ranks.worker import loop  # noqa: F401

    torch.set_num_threads(1)


def may_import_dynamo() -> bool:
    """Return whether dynamo may be imported here, before a rank has loaded its subject.

    Dynamo imports triton where there is one, and triton asks for good whether `TRITON_INTERPRET` is set. A
    subject may set that before it imports triton itself, and finds it imported without.
    """
    return "TRITON_INTERPRET" in os.environ or importlib.util.find_spec("triton") is None


def preload_dynamo() -> None:
    """Import what the first checkpoint would import in every rank; it takes as long as torch itself."""
    import torch._dynamo  # noqa: F401


def settle() -> None:
    """Have the collector leave alone what is there, so that ranks share its memory."""
    gc.collect()
    gc.freeze()


def _stand_alone(parent: int, log: Path) -> None:
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(70)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdout, sys.stderr = (_unbuffered(number) for number in (1, 2))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    use_policy(BATCH)


def _unbuffered(number: int) -> io.TextIOWrapper:
    """Return a text stream to a descriptor without any buffer: the last words before an abort count."""
    raw = io.FileIO(number, "wb", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _count_devices() -> int:
    """Count CUDA devices in a forked process, since asking the driver would spoil this one for forking."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            import torch

            os.write(outlet, bytes([min(255, torch.cuda.device_count())]))
        finally:
            os._exit(0)
    os.close(outlet)
    answer = os.read(inlet, 1)
    os.close(inlet)
    os.waitpid(pid, 0)
    return answer[0] if answer else 0

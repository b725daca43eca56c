"""The server's process as its parent holds it: one of its own, or one that a zygote forks."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import msgspec

from verify.entry import program
from verify.ranks import zygote
from verify.ranks.messages import Fork, Forked, Frames, frame

_LOADED = ("verify", "properties")
"""Packages of ours that ranks have; a subject may have a `reference` of its own."""
_FORK_SECONDS = 120.0


class ServerProcess(Protocol):
    """What a parent needs of it; `subprocess.Popen` has the same."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def poll(self) -> int | None:
        """Return a code if it has ended, else None; never waits."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; raises `subprocess.TimeoutExpired`."""


def started(theirs: socket.socket, folder: Path) -> ServerProcess:
    """Start a server, or have a zygote fork one, with its end of the connection; returns at once."""
    address = zygote.found()
    if address is not None:
        with contextlib.suppress(OSError, ValueError):  # a variable or a path may be no text
            return _Forked(address, theirs, folder)
    return _own(theirs, folder)


def _own(theirs: socket.socket, folder: Path) -> subprocess.Popen[bytes]:
    with _log(folder).open("wb") as log:
        return subprocess.Popen(
            program("verify.ranks.server", str(theirs.fileno()), str(folder), names=_LOADED),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )


def _log(folder: Path) -> Path:
    return folder / "server.log"


class _Forked:
    """A server that a zygote was asked for; if that is gone before it answers, one of its own.

    The zygote may have to import torch before it answers: what does not need the answer does not wait for it.
    """

    def __init__(self, address: Path, theirs: socket.socket, folder: Path) -> None:
        self._folder = folder
        self._theirs: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._descriptor, self._pid = -1, 0
        umask = os.umask(0o022)
        os.umask(umask)
        request = Fork(
            folder=str(folder),
            directory=os.getcwd(),  # noqa: PTH109 - as the kernel has it
            path=tuple(sys.path),
            environment=dict(os.environ),
            umask=umask,
            cores=tuple(os.sched_getaffinity(0)),
        )
        data = frame(request)
        self._control = socket.socket(socket.AF_UNIX)
        try:
            self._control.connect(str(address))
            with _log(folder).open("wb") as log:
                sent = socket.send_fds(self._control, [data], [theirs.fileno(), log.fileno()])
            self._control.sendall(data[sent:])
        except OSError:
            self._control.close()
            raise
        self._theirs = theirs.dup()

    @property
    def pid(self) -> int:
        """Its process id, awaited."""
        self._resolve()
        return self._process.pid if self._process else self._pid

    def poll(self) -> int | None:
        """Return a code if it has ended, else None; one that is not forked yet has not."""
        if self._theirs is not None and not _readable(self._control.fileno(), 0.0):
            return None
        self._resolve()
        if self._process:
            return self._process.poll()
        return 0 if self._descriptor < 0 or _readable(self._descriptor, 0.0) else None

    def kill(self) -> None:
        """End it at once; if it is not forked yet, it will find its connection closed."""
        if self._theirs is not None and not _readable(self._control.fileno(), 0.0):
            self._give_up()
            return
        self._resolve()
        if self._process:
            self._process.kill()
        elif self._descriptor >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended.

        Raises:
            subprocess.TimeoutExpired: If it has not by then.
        """
        if self._process:
            return self._process.wait(timeout)
        if self._descriptor >= 0:
            if not _readable(self._descriptor, timeout):
                raise subprocess.TimeoutExpired("the server", timeout or 0.0)
            os.close(self._descriptor)
            self._descriptor = -1
        return 0

    def _resolve(self) -> None:
        """Wait for the zygote's answer, once; without one start a server."""
        if self._theirs is None:
            return
        theirs, self._theirs = self._theirs, None
        with theirs, self._control:
            try:
                self._descriptor, self._pid = self._answered()
            except (OSError, ValueError, msgspec.MsgspecError):
                self._process = _own(theirs, self._folder)

    def _answered(self) -> tuple[int, int]:
        self._control.settimeout(_FORK_SECONDS)
        frames, descriptors = Frames(), list[int]()
        while (body := frames.next()) is None:
            data, some, _, _ = socket.recv_fds(self._control, 1 << 12, 1)
            descriptors += some
            if not data:
                raise OSError("the zygote is gone")
            frames.feed(data)
        (descriptor,) = descriptors
        return descriptor, msgspec.json.decode(body, type=Forked).pid

    def _give_up(self) -> None:
        if self._theirs is not None:
            self._theirs.close()
            self._control.close()
            self._theirs = None


def _readable(descriptor: int, seconds: float | None) -> bool:
    look = select.poll()
    look.register(descriptor, select.POLLIN)
    return bool(look.poll(None if seconds is None else seconds * 1000))

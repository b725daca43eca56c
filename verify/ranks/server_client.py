"""The client: the parent's side of the server, which it starts and asks for ranks.

Starting it costs the parent nothing (torch is imported over there), so a command starts it first, and imports
what it needs itself meanwhile. A request may be sent before the server can answer: replies come in order and
are read when they are needed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import msgspec

from verify.errors import RankError
from verify.ranks.limit import Limit, Queues
from verify.ranks.messages import Frames, FromServer, ToServer, frame, receive
from verify.ranks.server_process import started

_BOOT_SECONDS = 120.0
_LEAVE_SECONDS = 10.0


class ServerClient:
    """A running server, its connection and the folder that it shares with its ranks; closed at the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="syncbn-verify-"))
        self._decoder = msgspec.json.Decoder(FromServer)
        self._frames = Frames()
        self._sent = 0
        self._received = 0
        self._replies: dict[int, FromServer] = {}
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = started(theirs, self.folder)
        self._queues: Queues | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the server is still there."""
        return self._process.poll() is None

    @property
    def answered(self) -> bool:
        """Whether it has ever replied, or is gone; never waits."""
        look = select.poll()
        look.register(self._connection, select.POLLIN)
        return self._received > 0 or bool(look.poll(0))

    def send(self, request: ToServer, descriptors: tuple[int, ...] = ()) -> int:
        """Send `request` and return its ticket."""
        data = frame(request)
        try:
            sent = socket.send_fds(self._connection, [data], descriptors) if descriptors else 0
            self._connection.sendall(data[sent:])
        except OSError as error:
            raise RankError(self._lost(str(error))) from error
        self._sent += 1
        return self._sent

    def reply(self, ticket: int, *, seconds: float = _BOOT_SECONDS) -> FromServer:
        """Return the reply to the request of this ticket, waiting for it."""
        if self._queues is None:
            self._queues = Queues([self._process.pid])
        limit = Limit(seconds, self._queues.waited)
        while ticket not in self._replies:
            self._connection.settimeout(max(0.001, limit.left()))
            try:
                body = receive(self._connection, self._frames)
            except TimeoutError:
                if limit.left():
                    continue
                raise RankError(f"Expected the server of ranks to answer within {seconds:g} s.") from None
            if body is None:
                raise RankError(self._lost("its connection is closed"))
            self._received += 1
            self._replies[self._received] = self._decoder.decode(body)
        return self._replies.pop(ticket)

    def request(self, request: ToServer, *, seconds: float = _BOOT_SECONDS) -> FromServer:
        """Send `request` and return the reply to it."""
        return self.reply(self.send(request), seconds=seconds)

    def close(self) -> None:
        """End the server and all its ranks, and remove the folder; again, do nothing."""
        try:
            if not self._sent:
                self._process.kill()  # it has no ranks, and may be far from looking at its connection
            self._connection.close()
            if self._queues is not None:
                self._queues.close()
            self._await_end()
        finally:  # also after a second Ctrl-C
            shutil.rmtree(self.folder, ignore_errors=True)

    def _await_end(self) -> None:
        try:
            self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            # Its ranks ask the kernel for SIGKILL when it dies.
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LEAVE_SECONDS)

    def _lost(self, cause: str) -> str:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            code = self._process.wait(1.0)
            lines = (self.folder / "server.log").read_text(errors="replace").strip().splitlines()
            cause = lines[-1] if lines else f"exit code {code}"
        return f"Expected a server of ranks in process {self._process.pid}, but it is gone: {cause}"


def tail(path: Path, limit: int = 4000) -> str:
    """Return the end of a text file; nothing if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""

"""The zygote's own process (rules in `verify.ranks.zygote`): it imports torch when it is first asked."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from pathlib import Path

import msgspec

from verify.ranks import server
from verify.ranks.messages import Fork, Forked, Frames, frame
from verify.ranks.speed import slowness

_ASK_SECONDS = 5.0


def main() -> None:
    """Fork servers for whoever connects to the listener, until the owner's connection ends."""
    dynamo, listener, owner = (
        sys.argv[-3] == "dynamo",
        socket.socket(fileno=int(sys.argv[-2])),
        socket.socket(fileno=int(sys.argv[-1])),
    )
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    slow: float | None = None
    servers: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([listener.fileno(), owner.fileno(), *servers], [], [])
        for process in servers.keys() & set(ready):
            os.waitpid(servers.pop(process), 0)
            os.close(process)
        if owner.fileno() in ready:
            return
        if listener.fileno() not in ready:
            continue
        if slow is None:
            os.environ.update(server.environment())
            with server.leaving_with(owner):
                server.preload()
                if dynamo and server.may_import_dynamo():
                    server.preload_dynamo()
            slow = slowness()
            server.settle()
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
            servers.update(_answer(connection, (listener.fileno(), owner.fileno(), *servers), slow))


def _answer(connection: socket.socket, mine: tuple[int, ...], slow: float) -> dict[int, int]:
    """Fork the server that is asked for, and hand over its process id and a descriptor of it.

    Returns:
        The process id by a descriptor of the process, which becomes readable when it ends.
    """
    connection.settimeout(_ASK_SECONDS)
    frames, descriptors = Frames(), list[int]()
    try:
        while (body := frames.next()) is None:
            data, some, _, _ = socket.recv_fds(connection, 1 << 16, 2)
            descriptors += some
            if not data:
                return {}  # who asked is gone
            frames.feed(data)
        request = msgspec.json.decode(body, type=Fork)
        theirs, log = descriptors
        pid = os.fork()
        if not pid:
            for one in (connection.detach(), *mine):
                os.close(one)
            _become_server(request, theirs, log, slow)
        process = os.pidfd_open(pid)
        with contextlib.suppress(OSError):  # who asked is gone: so will the server be
            socket.send_fds(connection, [frame(Forked(pid=pid))], [process])
        return {process: pid}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _become_server(request: Fork, connection: int, log: int, slow: float) -> None:
    """Turn the forked process into a server with what it takes over from its parent; never returns."""
    code = 70
    try:
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ.clear()
        os.environ.update(request.environment)
        os.chdir(request.directory)
        os.umask(request.umask)
        with contextlib.suppress(OSError):  # cores that only the parent may use
            os.sched_setaffinity(0, request.cores)
        sys.path[:] = request.path
        server.serve(socket.socket(fileno=connection), Path(request.folder), slow=slow)
        code = 0
    except SystemExit:
        code = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
    finally:
        os._exit(code)

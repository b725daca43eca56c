"""A crew: the worker processes that share out units of work, from the parent's side.

Rules
-----
- A worker has one unit at a time, and takes the next one when it is done.
- A worker that dies, or says nothing for too long, loses its unit only, and is replaced.
- Whatever happens, `close` leaves no process behind: workers end their ranks on SIGTERM; one that does not
  leave is killed, and its ranks go with the server that notices.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import IO, Self

import msgspec

from verify.entry import program
from verify.errors import RankError
from verify.measure.power.outcome import Beat, Broken, Done, Message, Outcome, Ready
from verify.measure.power.work_units import Unit

SILENCE = 240.0
"""Seconds without a word after which a worker is given up; a minimising with hangs may take one of them."""
MAX_STILLBORN = 3
"""Workers in a row that end before they are ready, after which it is not the units' fault."""
_LEAVE_SECONDS = 15.0
_TAIL = 2000


class _Worker:
    """One worker process: its pipes, its unit, and when it was last heard."""

    def __init__(self, command: Sequence[str]) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            bufsize=0,
        )
        self._rest = b""
        self.unit: Unit | None = None
        self.ready = False
        self.heard = time.monotonic()

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def give(self, unit: Unit) -> None:
        """Hand it a unit; if it is dead, reading from it will tell."""
        assert self._process.stdin is not None
        self.unit, self.heard = unit, time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(unit) + b"\n")

    def lines(self) -> list[bytes] | None:
        """Return the whole lines that can be read now; None if it has ended."""
        chunk = os.read(self.fileno(), 1 << 16)
        if not chunk:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return lines

    def terminate(self) -> None:
        """Ask it to end its ranks and leave."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def close(self) -> str:
        """Wait until it has left, bounded; return how it ended, with the end of what it wrote."""
        try:
            code = self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        with self._log as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            said = log.read().decode("utf-8", "replace").strip()
        return f"the worker ended with exit code {code}" + (f":\n{said}" if said else "")


class ProcessPool:
    """Workers on this machine; a context manager that ends them.

    Args:
        workers: How many at most.
        command: What starts one; the real worker unless given.
        silence: Seconds without a word after which one is given up.
    """

    def __init__(self, workers: int, *, command: Sequence[str] = (), silence: float = SILENCE) -> None:
        self._size = workers
        self._command = tuple(command) or program("verify.measure.power.pool_worker")
        self._silence = silence
        self._decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
        self._workers: list[_Worker] = []
        self._stillborn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers and their ranks."""
        for worker in self._workers:
            worker.terminate()
        while self._workers:
            self._workers.pop().close()

    def work(self, units: Iterable[Unit]) -> Iterator[Done]:
        """Yield each unit with its outcome, as they are done.

        Raises:
            RankError: If workers cannot be started.
        """
        waiting = deque(units)
        while waiting or any(worker.unit is not None for worker in self._workers):
            self._share_out(waiting)
            yield from self._listen()

    def _share_out(self, waiting: deque[Unit]) -> None:
        """Give each idle worker a unit, and start workers while there are units for them."""
        for worker in self._workers:
            if worker.unit is None and waiting:
                worker.give(waiting.popleft())
        while waiting and len(self._workers) < self._size:
            self._workers.append(_Worker(self._command))
            self._workers[-1].give(waiting.popleft())

    def _listen(self) -> Iterator[Done]:
        """Wait for a word of any worker, bounded, and yield what is done."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker, selectors.EVENT_READ)
            heard = {key.fileobj for key, _ in selector.select(timeout=1.0)}
        for worker in tuple(self._workers):
            lines = worker.lines() if worker in heard else []
            if lines is None:
                yield from self._lose(worker)
                continue
            for line in lines:
                yield from self._take(worker, self._decoded(line))
            if worker.unit is not None and time.monotonic() - worker.heard > self._silence:
                worker.terminate()
                yield from self._lose(worker, f"nothing was heard of it for {self._silence:g} s; ")

    def _decoded(self, line: bytes) -> Message:
        try:
            return self._decoder.decode(line)
        except msgspec.MsgspecError as error:
            return Broken(reason=f"Expected a message of a worker, but got {line[:80]!r}: {error}.")

    def _take(self, worker: _Worker, message: Message) -> Iterator[Done]:
        if isinstance(message, Ready):
            worker.ready, self._stillborn = True, 0
        elif not isinstance(message, Beat) and worker.unit is not None:
            outcome: Outcome = message
            unit, worker.unit = worker.unit, None
            yield Done(unit=unit, outcome=outcome)

    def _lose(self, worker: _Worker, why: str = "") -> Iterator[Done]:
        """Take leave of a worker, and yield its unit as broken."""
        self._workers.remove(worker)
        reason = why + worker.close()
        self._stillborn += not worker.ready
        if self._stillborn >= MAX_STILLBORN:
            raise RankError(f"Expected workers to start, but {self._stillborn} in a row did not: {reason}")
        if worker.unit is not None:
            yield Done(unit=worker.unit, outcome=Broken(reason=reason))

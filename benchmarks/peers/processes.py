"""A group of ranks for the peers' checks: made when needed, killed where a rank hangs, dies or raises."""

from __future__ import annotations

import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers.checks import Check

_STARTING, _RUNNING = 60.0, 10.0
_PRELOADED = [
    "benchmarks.peers.rank",
    "verify.subjects.aggregated",
    "torch.fx.experimental.symbolic_shapes",  # what a first backward and a first assert_close import: seconds
    "torch.distributed.tensor",
]


class RankFailedError(RuntimeError):
    """A rank ended or did not answer in time; its harness would notice, too."""


class Group:
    """Ranks that run one subject; a context manager that ends them.

    Args:
        subject: `module:factory`.
        world: Number of ranks.

    Raises:
        RankFailedError: If a rank does not start.
    """

    def __init__(self, subject: str, world: int) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self._ends: list[Connection] = []
        self._ranks: list[Any] = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_start, args=(rank, world, store, subject, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._ranks.append(process)
        self._answers(_STARTING)

    def run(self, check: Check) -> list[str]:
        """Return what each rank answers to `check`: "", what differs, or "raised: ...".

        Raises:
            RankFailedError: If one does not.
        """
        for end in self._ends:
            end.send(check)
        return self._answers(_RUNNING)

    def _answers(self, seconds: float) -> list[str]:
        answers: dict[int, str] = {}
        until = time.monotonic() + seconds
        while len(answers) < len(self._ends):
            waiting = [end for rank, end in enumerate(self._ends) if rank not in answers]
            ready = wait(waiting, timeout=max(0.0, until - time.monotonic()))
            if not ready:
                raise RankFailedError(
                    f"Expected every rank to answer, but {len(waiting)} did not in {seconds} s."
                )
            for end in ready:
                rank = self._ends.index(end)  # type: ignore[arg-type]
                try:
                    answers[rank] = self._ends[rank].recv()
                except (EOFError, OSError):
                    raise RankFailedError(f"Expected rank {rank} to answer, but it ended.") from None
        return [answers[rank] for rank in range(len(self._ends))]

    def __enter__(self) -> Self:
        """Return the group."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the ranks."""
        for process in self._ranks:
            process.kill()
        for process in self._ranks:
            process.join()
        for end in self._ends:
            end.close()
        self._folder.cleanup()


def _start(*arguments: Any) -> None:
    from benchmarks.peers.rank import serve

    serve(*arguments)

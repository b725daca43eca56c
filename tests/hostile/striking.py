"""Striking: a hostile subject in the middle of a run, between a case before and cases after."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from catalogue import HARMLESS, TIMEOUT, Entry

from properties.observation import RankObservation
from verify.engine.engine import Run
from verify.engine.examiner import Examiner
from verify.ranks.pool import LostGroup
from verify.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """What one hostile subject did to a run.

    Attributes:
        before, struck: The harmless case, then the one on which it strikes.
        right, after: The harmless case on a right subject, then on the same one.
        lost: The groups that the strike cost.
        lost_after: Those that were lost later.
        seconds: From the strike until it was judged.
    """

    before: Trial
    struck: Trial
    right: Trial
    after: Trial
    lost: tuple[LostGroup, ...]
    lost_after: tuple[LostGroup, ...]
    seconds: float


class Range:
    """An open run, and the groups that it loses."""

    def __init__(self, run: Run, losses: list[LostGroup]) -> None:
        self.run = run
        self._losses = losses
        self._right: Examiner = run.examiner(run.subject("aggregated"))
        self._right.examine(HARMLESS)  # the reference is compiled, and the time to warm up is used

    def strike(self, entry: Entry) -> Strike:
        """Have the subject of `entry` strike."""
        pool = self.run.pool
        pool.timeout = 10.0
        examiner = self.run.examiner(self.run.subject(entry.spec))
        before = examiner.examine(HARMLESS)
        pool.timeout = entry.timeout
        self._losses.clear()
        started = time.monotonic()
        struck = examiner.examine(entry.case)
        seconds = time.monotonic() - started
        lost = tuple(self._losses)
        self._losses.clear()
        pool.timeout = 10.0
        right, after = self._right.examine(HARMLESS), examiner.examine(HARMLESS)
        return Strike(
            before=before,
            struck=struck,
            right=right,
            after=after,
            lost=lost,
            lost_after=tuple(self._losses),
            seconds=seconds,
        )

    @property
    def server(self) -> int:
        """Process id of the server of ranks."""
        client = self.run.pool.groups.client
        assert client is not None
        return client._process.pid


@contextmanager
def opened() -> Iterator[Range]:
    """Open a run for strikes."""
    losses: list[LostGroup] = []
    with Run(timeout=TIMEOUT) as run:
        run.pool.groups.on_lost = losses.append
        yield Range(run, losses)


def told(seen: RankObservation) -> str:
    """Return all that was told of how a rank ended."""
    raised = seen.raised
    words = f"{raised.type} {raised.message} {raised.phase} {raised.traceback}" if raised else ""
    return f"{words} {seen.exit} {seen.stack}"


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of all processes below `pid`, by process id."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
    found: dict[int, str] = {}
    level = {pid}
    while level := {child for child, parent in parents.items() if parent in level}:
        for child in level:
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue
    return found

"""Progress: each fault's line as soon as its last seed is done; on a terminal with a bar below."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from verify.measure.power.outcome import Broken, Done
from verify.measure.power.score import Score
from verify.measure.power.score_text import Columns
from verify.measure.power.work_units import FaultUnit

INTERVAL = 15.0
"""Seconds between lines of progress in a log."""


class Told:
    """Tells what is done, on `stream`; a context manager that takes the bar away.

    Args:
        score: Already has what is told.
        stream: A terminal or a log.
        clock: Monotonic seconds.
    """

    def __init__(self, score: Score, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._score, self._stream, self._clock = score, stream, clock
        ids = [unit.card.id for unit in score.units if isinstance(unit, FaultUnit)]
        self.columns = Columns(max(map(len, ["fault", *ids])))
        self._told = clock()
        self._bar = _bar(stream) if stream.isatty() else None
        self._task = TaskID(0)
        self._left = set(ids)

    def __enter__(self) -> Self:
        if self._left:
            self._write(self.columns.head)
        if self._bar is not None:
            self._task = self._bar.add_task("judged", total=len(self._score.units), doing="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away, and tell the faults of which only some seeds were judged."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        for row in self._score.rows:
            if row.card.id in self._left:
                self._write(self.columns.line(row))

    def tell(self, done: Done) -> None:
        """Tell one unit that is done."""
        if isinstance(done.outcome, Broken):
            self._write(f"our own machinery failed on {done.unit.title}: {done.outcome.reason}")
        if isinstance(done.unit, FaultUnit):
            row = self._score.row(done.unit.card)
            if row.finished:
                self._left.discard(row.card.id)
                self._write(self.columns.line(row))
        if self._bar is not None:
            self._bar.update(self._task, completed=len(self._score.done), doing=done.unit.title)
        elif self._clock() - self._told >= INTERVAL:
            self._write(f"{len(self._score.done)} of {len(self._score.units)} units judged")

    def _write(self, line: str) -> None:
        self._told = self._clock()
        if self._bar is not None:
            self._bar.console.print(line, soft_wrap=True)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()


def _bar(stream: TextIO) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}"),
        console=Console(file=stream, highlight=False, markup=False, emoji=False),
        transient=True,
    )

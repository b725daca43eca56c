"""The terminal report: the lines of the log report below a progress bar."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from verify.events import (
    CampaignEnded,
    CampaignStarted,
    CaseDrawn,
    CaseEnded,
    Event,
    FailureFound,
    FailureMinimised,
)
from verify.report.log import Lines
from verify.report.pace import forecast


class Terminal:
    """Shows progress on a terminal; everything else is written as `Lines` does.

    Args:
        lines: What is written beside it.
        stream: A terminal, on which they are written.
    """

    def __init__(self, lines: Lines, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._lines = lines
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._cases: int | None = None

    def handle(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, CaseEnded) and not event.internal:
            self._advance(event)
            if not forecast(event.pace, number=event.number, cases=self._cases):
                return
        if isinstance(event, CaseDrawn):
            return
        # What stays on the screen is written with the bar taken away.
        self._pause(for_good=isinstance(event, CampaignEnded))
        self._lines.handle(event)
        if isinstance(event, CampaignStarted):
            self._start(event)
        elif self._progress is not None:
            if isinstance(event, FailureFound | FailureMinimised):
                doing = f"minimising {event.property}" if isinstance(event, FailureFound) else "drawing"
                self._progress.update(self._task, doing=doing)
            self._progress.start()

    def close(self) -> None:
        """Take the bar away, also after an interrupt."""
        self._pause(for_good=True)

    def _start(self, event: CampaignStarted) -> None:
        self._cases = event.cases
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(event.label, total=event.cases, doing="drawing")
        self._progress.start()

    def _advance(self, event: CaseEnded) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=event.number, doing="drawing")

    def _pause(self, *, for_good: bool) -> None:
        if self._progress is not None:
            self._progress.stop()
        if for_good:
            self._progress = None

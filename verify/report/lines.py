"""The log report: plain lines, for a file or a CI log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from verify.events import (
    CampaignEnded,
    CampaignStarted,
    CaseEnded,
    Event,
    FailureFound,
    FailureMinimised,
    GroupLost,
)
from verify.report.summary import summary
from verify.wording import count

INTERVAL = 15.0
"""Seconds between lines of progress."""
MAX_LOST_LINES = 3


class Lines:
    """Writes each event that a reader of a log wants as lines to `stream`.

    Args:
        stream: Where to write.
        clock: Monotonic seconds.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._told = 0.0
        self._label = ""
        self._internal = self._groups = 0

    def handle(self, event: Event) -> None:
        """Write the lines of one event."""
        match event:
            case CampaignStarted():
                self._label, self._told = event.label, self._clock()
                self._internal = self._groups = 0
                self._write(started_line(event))
            case CaseEnded():
                self._case(event)
            case FailureFound():
                self._write(f"{self._label}: {event.property} violated by case {event.case.id}; minimising")
            case FailureMinimised():
                self._write("\n" + event.failure.text + "\n")
            case GroupLost():
                self._lost(event)
            case CampaignEnded():
                self._write(*summary(event.result))
            case _:
                pass

    def _lost(self, event: GroupLost) -> None:
        """Tell the first lost groups one by one; the summary counts them all."""
        self._groups += 1
        if self._groups <= MAX_LOST_LINES:
            last = "; further ones are not told" if self._groups == MAX_LOST_LINES else ""
            self._write(
                f"{self._label}: group of {count(event.world_size, 'rank')} lost: {event.reason}{last}"
            )

    def _case(self, event: CaseEnded) -> None:
        if event.internal:
            self._internal += 1
            if self._internal <= 3:
                self._write(
                    f"{self._label}: our own machinery failed on case {event.case_id}:\n{event.internal}"
                )
        if self._clock() - self._told >= INTERVAL:
            self._told = self._clock()
            self._write(f"{self._label}: {count(event.number, 'case')} judged")

    def _write(self, *lines: str) -> None:
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()


def started_line(event: CampaignStarted) -> str:
    """Return the line that opens a campaign: budget, grade, device, domain."""
    parts = [f"{event.cases} cases"] if event.cases is not None else []
    parts += [f"{event.seconds:g} s"] if event.seconds is not None else []
    budget = " or ".join(parts) or "no limit"
    return (
        f"{event.label}: {budget}, grade {event.grade}, {event.device}/{event.backend}, seed {event.seed}, "
        f"domain excludes {event.excluded:.1%} of the default one"
        + (f"; it takes no {', '.join(event.lacking)}" if event.lacking else "")
    )

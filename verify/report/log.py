"""The log report: plain lines, for a file or a CI log.

Its detail is one of three. `everything`: each event as it comes, and all counts. `usual`: how far it is, then
the verdict, the counts that a reader needs, and each failing case. `unexpected`: one line a subject, and more
only of one that does not meet its expectation; who writes a table afterwards asks for this.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TextIO

from verify.events import (
    CampaignEnded,
    CampaignStarted,
    CaseEnded,
    Event,
    FailureFound,
    FailureMinimised,
    GroupLost,
)
from verify.report.failing import by_cause
from verify.report.pace import forecast
from verify.report.summary import known_lines, summary
from verify.report.words import count

Detail = Literal["unexpected", "usual", "everything"]
INTERVALS: dict[Detail, float] = {"everything": 15.0, "usual": 60.0, "unexpected": float("inf")}
"""Seconds between lines of progress."""
MAX_LOST_LINES = 3


class Lines:
    """Writes each event that a reader of a log wants as lines to `stream`.

    Args:
        stream: Where to write.
        detail: How much.
        known: List the known discrepancies in any case.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        detail: Detail = "usual",
        known: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._clock = stream, clock
        self._detail, self._known = detail, known
        self._told = 0.0
        self._cases: int | None = None
        self._label = ""
        self._internal = self._groups = 0
        self._texts: set[str] = set()

    def handle(self, event: Event) -> None:
        """Write the lines of one event."""
        match event:
            case CampaignStarted():
                self._label, self._told, self._cases = event.label, self._clock(), event.cases
                self._internal = self._groups = 0
                self._texts = set()
                self._write(opening_line(event) if self._detail == "unexpected" else started_line(event))
            case CaseEnded():
                self._case(event)
            case FailureFound() if self._detail != "unexpected":
                self._write(f"{self._label}: {event.property} violated by case {event.case.id}; minimising")
            case FailureMinimised() if self._detail == "everything":
                self._texts.add(event.failure.text)
                self._write("\n" + event.failure.text + "\n")
            case GroupLost() if self._detail != "unexpected":
                self._lost(event)
            case CampaignEnded():
                self._ended(event)
            case _:
                pass

    def _ended(self, event: CampaignEnded) -> None:
        """Tell the result: the verdict and its counts, then what violates it."""
        result = event.result
        if self._detail == "everything":
            self._write(*summary(result, everything=True))
            again = [failure.text for failure in result.failures if failure.text not in self._texts]
            self._write(*("\nBy all that was seen:\n" + text + "\n" for text in again))
            return
        if self._detail == "unexpected" and result.met and not result.accounting.internal:
            return
        self._write(*summary(result), *(known_lines(result.known) if self._known else ()))
        if self._detail == "unexpected" and result.met:
            return
        full = self._detail == "unexpected"
        texts = [failure.text for failure in result.failures] if full else by_cause(result.failures)
        self._write(*("\n" + text + "\n" for text in texts))

    def _lost(self, event: GroupLost) -> None:
        """Tell the first lost groups one by one; the summary counts them all.

        That a rank hung, died or was stopped is told with its case.
        """
        if self._detail != "everything" and not event.reason.startswith("left its process changed"):
            return
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
        if told := forecast(event.pace, number=event.number, cases=self._cases):
            self._write(f"{self._label}: {told}")
        if self._clock() - self._told >= INTERVALS[self._detail]:
            self._told = self._clock()
            self._write(f"{self._label}: {count(event.number, 'case')} judged")

    def _write(self, *lines: str) -> None:
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def opening_line(event: CampaignStarted) -> str:
    """Return the line that says what is judged, and what must come out."""
    must = "the control, which must be reported" if event.expectation == "VIOLATED" else "it must hold"
    return f"{event.label}: {budget_words(event)}; {must}"


def budget_words(event: CampaignStarted) -> str:
    """Return "500 cases or 60 s"."""
    parts = [count(event.cases, "case")] if event.cases is not None else []
    parts += [f"{event.seconds:g} s"] if event.seconds is not None else []
    return " or ".join(parts) or "no limit"


def started_line(event: CampaignStarted) -> str:
    """Return the line that opens a campaign: budget, grade, device, domain."""
    return (
        f"{event.label}: {budget_words(event)}, grade {event.grade}, {event.device}/{event.backend}, "
        f"seed {event.seed}, domain excludes {event.excluded:.1%} of the default one"
        + (f"; it takes no {', '.join(event.lacking)}" if event.lacking else "")
    )

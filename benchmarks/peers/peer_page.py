"""The table of the comparison: faults caught by class and in total."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.peers.checks import MEANS
from verify.faults.classes import class_name

VERIFY = "verify"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What catches one fault.

    Attributes:
        fault: Its id.
        number: Its class.
        caught: First finding, by the suites and `verify` that have one.
        seconds: Of all suites together, and of `verify`.
    """

    fault: str
    number: int
    caught: dict[str, str]
    seconds: dict[str, float] = {}


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the Markdown table by class, with the total at its end."""
    columns = (*MEANS, VERIFY)
    yield "| class | faults | " + " | ".join(f"({one})" for one in MEANS) + " | this suite |"
    yield "|---|" + "---:|" * (len(columns) + 1)
    for number in sorted({row.number for row in rows}, key=lambda one: one or 99):
        own = [row for row in rows if row.number == number]
        title = f"{number} {class_name(number)}" if number else class_name(number)
        yield _line(title, own, columns)
    yield _line("**all**", rows, columns)


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the Markdown table of the totals, one line a suite."""
    yield "| checks | faults caught | share |"
    yield "|---|---:|---:|"
    texts = {**{name: f"({name}) {text}" for name, text in MEANS.items()}, VERIFY: "this suite"}
    for name, text in texts.items():
        caught = sum(name in row.caught for row in rows)
        yield f"| {text} | {caught} of {len(rows)} | {100 * caught // max(1, len(rows))} % |"


def missed(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what a suite of the peers catches and `verify` does not."""
    for row in rows:
        if row.caught and VERIFY not in row.caught:
            yield f"- {row.fault}: caught by ({', '.join(row.caught)}), not by this suite"


def _line(title: str, rows: Sequence[Row], columns: Sequence[str]) -> str:
    counts = [sum(name in row.caught for row in rows) for name in columns]
    return f"| {title} | {len(rows)} | " + " | ".join(map(str, counts)) + " |"

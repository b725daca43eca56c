"""The history: what benches measured before, a line of JSON each, in `benchmarks/history.jsonl`.

A bench is compared with the last line that has the figure and comes from as many cores; it writes a line of
its own only when it is asked to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verify.measure.bench.child import ROOT
from verify.measure.bench.figure import Figure
from verify.strict_json import line

FILE = ROOT / "benchmarks" / "history.jsonl"
MARGIN = 0.2
"""A figure that is worse than the recorded one by a greater share is told."""


def entry(figures: Sequence[Figure], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line of a bench: its date, the versions, cores and load, and the value of each figure."""
    environment = facts["environment"]
    return {
        "date": facts["date"],
        "versions": environment["versions"],
        "python": environment["python"],
        "cores": environment["cores"],
        "load": facts["load"],
        "figures": {figure.name: figure.value for figure in figures if math.isfinite(figure.value)},
    }


def read(path: Path = FILE) -> list[dict[str, Any]]:
    """Return the entries, oldest first; none if there is no file.

    Raises:
        ValueError: If a line is no entry; it names the line.
    """
    if not path.is_file():
        return []
    entries = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get("figures"), dict):
            raise ValueError(
                f"Expected an object with figures on each line of {path}, but line {number} is not."
            )
        entries.append(found)
    return entries


def append(new: Mapping[str, Any], path: Path = FILE) -> None:
    """Append one entry."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line(new) + "\n")


def last_values(entries: Sequence[Mapping[str, Any]], *, cores: int) -> dict[str, tuple[float, str]]:
    """Return, by figure, the value and the date of the last entry from a machine with so many cores."""
    return {
        name: (value, one["date"])
        for one in entries
        if one.get("cores") == cores
        for name, value in one["figures"].items()
    }


def worse(figure: Figure, last: Mapping[str, tuple[float, str]]) -> str:
    """Return a line if `figure` is more than a fifth worse than it last was, else nothing."""
    if figure.name not in last:
        return ""
    value, date = last[figure.name]
    share = figure.worse_than(value)
    if not share > MARGIN:
        return ""
    return f"WORSE by {share:.0%} than {value:.3g}, recorded on {date[:10]}"

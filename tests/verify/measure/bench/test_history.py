"""The history: lines that are appended, and figures that have become worse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from verify.measure.bench.figure import Figure
from verify.measure.bench.history import append, entry, last_values, read, worse

FACTS: dict[str, Any] = {
    "date": "2026-11-23T09:00:00+00:00",
    "load": [0.1, 0.2, 0.3],
    "environment": {"versions": {"torch": "2"}, "python": "3.11", "cores": 2},
}


def figure(value: float, **more: Any) -> Figure:
    return Figure(name="harness ratio", value=value, target=1.5, **more)


def test_what_is_appended_is_read_again_and_the_last_value_counts(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read(path) == []
    for value in (3.0, 2.0):
        append(entry([figure(value), Figure(name="lost", value=math.nan, target=1)], FACTS), path)
    assert last_values(read(path), cores=2) == {"harness ratio": (2.0, FACTS["date"])}


def test_a_machine_with_other_cores_says_nothing(tmp_path: Path) -> None:
    append(entry([figure(2.0)], FACTS), tmp_path / "h")
    assert last_values(read(tmp_path / "h"), cores=4) == {}


def test_a_line_that_is_no_entry_is_named(tmp_path: Path) -> None:
    (tmp_path / "h").write_text('{"figures": {}}\n[]\n')
    with pytest.raises(ValueError, match="line 2 is not"):
        read(tmp_path / "h")


def test_only_a_figure_more_than_a_fifth_worse_is_told() -> None:
    last = {"harness ratio": (2.0, FACTS["date"])}
    assert worse(figure(2.39), last) == ""
    assert worse(figure(2.5), last) == "WORSE by 25% than 2, recorded on 2026-11-23"
    assert worse(figure(1.0), last) == ""
    assert worse(figure(1.0, sense="at least"), last).startswith("WORSE by 50%")
    assert worse(figure(9.0), {}) == ""
    assert worse(figure(math.nan), last) == ""

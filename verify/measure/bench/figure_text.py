"""The report of a bench: a line a figure with what it was made of, and everything as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verify.measure.bench.figure import Figure
from verify.strict_json import plain

HEADER = f"{'figure':<28} {'measured':>10}  {'target':<16}"


def lines(figure: Figure) -> list[str]:
    """Return the line of `figure`, and lines of what it was made of."""
    target = f"{figure.sense} {number(figure.target)}{figure.unit and ' '}{figure.unit}"
    head = f"{figure.name:<28} {number(figure.value):>10}  {target:<16} {'met' if figure.met else 'NOT MET'}"
    return [head, *(f"    {name}: {_words(value)}" for name, value in figure.details.items())]


def number(value: float) -> str:
    """Return three digits of `value`, or all of an integer."""
    return f"{value:.0f}" if value == int_or_zero(value) or abs(value) >= 1000 else f"{value:.3g}"


def int_or_zero(value: float) -> float:
    """Return `value` rounded; 0 for what cannot be."""
    return float(round(value)) if abs(value) < 1e15 else 0.0


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_words(one)}" for name, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_words, value))
    return number(value) if isinstance(value, float | int) else str(value)


def document(
    figures: Sequence[Figure], *, failed: Mapping[str, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything as JSON data; `facts` say on what it was measured, `failed` why something was not."""
    return {
        "schema": 1,
        **facts,
        "figures": [plain(figure) | {"met": figure.met} for figure in figures],
        "failed": dict(failed),
    }

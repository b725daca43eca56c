"""Plain data: JSON builtins in which non-finite numbers are the strings "nan", "inf" and "-inf"."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec


def plain(value: object) -> Any:
    """Return `value` (structs, tuples, enums, numbers) as JSON builtins, non-finite numbers as strings."""
    return _spell(msgspec.to_builtins(value))


def line(value: object) -> str:
    """Return `value` as one line of strict JSON."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def _spell(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _spell(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value

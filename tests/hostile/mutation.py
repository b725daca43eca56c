"""Mutations: texts of data, spoilt at random in their bytes or in their structure."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

NASTY: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    65,
    2**31,
    2**63,
    2**64,
    10**400,
    -0.0,
    5e-324,
    1e308,
    "",
    "nan",
    "inf",
    "-inf",
    "\x00",
    "\x1b[2J",
    "\u202e",
    "../../../../etc/passwd",
    "__import__('os').abort()",
    "float32",
    "x" * 3000,
    [],
    {},
    [[]],
    [0] * 500,
    [1.5, "a", None],
    {"": {"": {}}},
)
RAW = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-",
    b'"\\ud800"',
    b'"\\udc80\\ud800"',
    b"[" * 3000,
    b'{"a":' * 3000,
    b"9" * 5000,
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\n",
    b"}\n{",
    b'"',
    b"\\",
    b",",
    b"//",
)


def spoilt(source: random.Random, text: bytes, others: tuple[bytes, ...]) -> bytes:
    """Return `text` after one to three mutations of its bytes; pieces of `others` may come into it."""
    for _ in range(source.randint(1, 3)):
        text = source.choice(_MUTATIONS)(source, text, others)
    return text


def restructured(source: random.Random, text: bytes) -> bytes:
    """Return the JSON `text` after one to three changes of its structure."""
    data = json.loads(text)
    for _ in range(source.randint(1, 3)):
        data = _changed(source, data)
    return json.dumps(data, ensure_ascii=source.random() < 0.5).encode("utf-8", "surrogatepass")


def _changed(source: random.Random, data: Any) -> Any:
    """Return `data` with a value at a random place replaced, removed, renamed or repeated."""
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    if not keys or source.random() < 0.2:
        return source.choice(NASTY)
    key = source.choice(list(keys))
    how = source.random()
    changed: Any = dict(data) if isinstance(data, dict) else list(data)
    if how < 0.6:
        changed[key] = _changed(source, changed[key])
    elif how < 0.8:
        del changed[key]
    elif isinstance(changed, dict):
        changed[str(source.choice(("", "exec", "__class__", key * 2, "kind")))] = changed[key]
    else:
        changed.extend(changed[key : key + 1] * source.choice((1, 2, 70)))
    return changed


def _place(source: random.Random, text: bytes) -> int:
    return source.randint(0, len(text))


def _flip(source: random.Random, text: bytes, others: tuple[bytes, ...]) -> bytes:
    del others
    found = bytearray(text or b"\0")
    for _ in range(source.choice((1, 1, 1, 4, 16))):
        found[source.randrange(len(found))] ^= 1 << source.randrange(8)
    return bytes(found)


def _cut(source: random.Random, text: bytes, others: tuple[bytes, ...]) -> bytes:
    del others
    return text[: _place(source, text)]


def _remove(source: random.Random, text: bytes, others: tuple[bytes, ...]) -> bytes:
    del others
    at = _place(source, text)
    return text[:at] + text[at + source.choice((1, 2, 8, 64)) :]


def _repeat(source: random.Random, text: bytes, others: tuple[bytes, ...]) -> bytes:
    del others
    begin, end = sorted((_place(source, text), _place(source, text)))
    return text[:end] + text[begin:end][:5000] + text[end:]


def _splice(source: random.Random, text: bytes, others: tuple[bytes, ...]) -> bytes:
    other = source.choice(others)
    return text[: _place(source, text)] + other[_place(source, other) :]


def _insert(source: random.Random, text: bytes, others: tuple[bytes, ...]) -> bytes:
    del others
    at = _place(source, text)
    return text[:at] + source.choice(RAW) + text[at:]


def _replace_token(source: random.Random, text: bytes, others: tuple[bytes, ...]) -> bytes:
    """Replace what lies between two delimiters, so that the rest stays as it is."""
    del others
    places = [index for index, byte in enumerate(text[:20_000]) if byte in b',:[]{}="']
    if len(places) < 2:
        return text
    index = source.randrange(len(places) - 1)
    nasty = json.dumps(source.choice(NASTY)).encode() if source.random() < 0.7 else source.choice(RAW)
    return text[: places[index] + 1] + nasty + text[places[index + 1] :]


_MUTATIONS: tuple[Callable[[random.Random, bytes, tuple[bytes, ...]], bytes], ...] = (
    _flip,
    _cut,
    _remove,
    _repeat,
    _splice,
    _insert,
    _replace_token,
    _replace_token,
)

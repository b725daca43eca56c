"""Exceptions: what is told of one that left the subject, whatever it does when it is asked."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from properties.observation import Raised

MAX_MESSAGE = 2000
MAX_TRACEBACK = 8000
MAX_WRAPPED = 8
_TOLD = re.compile(r"\b(?:got|raised exception) (?P<type>\w+(?:Error|Exception))\(")
"""How `torch._dynamo` quotes the exception of the code that it traces, where it does not chain it."""
_OURS = str(Path(__file__).parents[1]) + os.sep


def describe(error: BaseException, phase: str) -> Raised:
    """Return type, message, phase and traceback of `error`; an exception whose `str` raises is told so."""
    return Raised(
        type=_name(error),
        message=_clean(_message(error), MAX_MESSAGE),
        phase=phase,
        traceback=_clean(_traceback(error), MAX_TRACEBACK),
        wraps=tuple(_wrapped(error)),
    )


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as second:
        return f"<str() of the exception raised {type(second).__name__}>"


def _wrapped(error: BaseException) -> Iterator[str]:
    """Yield the type names of what `error` was raised for, and of what a compiler quotes, the nearest first.

    Of a type that is not built in, that of its nearest built-in base, too. An exception was raised for its
    cause and, if it is torch's own, for the one that was being handled: what a subject raises by accident
    while it handles another wraps nothing.
    """
    one: BaseException | None = error
    for _ in range(MAX_WRAPPED):
        assert one is not None
        torchs = type(one).__module__.partition(".")[0] == "torch"
        if torchs:
            yield from (found["type"] for found in list(_TOLD.finditer(_message(one)))[:1])
        one = one.__cause__ or (one.__context__ if torchs and not one.__suppress_context__ else None)
        if one is None:
            return
        yield _name(one)
        if type(one).__module__ != "builtins":
            yield next(base.__name__ for base in type(one).__mro__ if base.__module__ == "builtins")


def _traceback(error: BaseException) -> str:
    """Return the traceback from where our own frames end; all of it if nothing else is there."""
    start = error.__traceback__
    while start is not None and start.tb_frame.f_code.co_filename.startswith(_OURS):
        start = start.tb_next
    start = start or error.__traceback__
    try:
        return "".join(traceback.format_exception(type(error), error, start))
    except BaseException:
        return "".join(traceback.format_tb(start))


def _clean(text: str, limit: int) -> str:
    """Return `text` as valid UTF-8 of bounded length; of a long one, its beginning and its end."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n[...]\n{text[-limit // 2 :]}"
    return text.encode("utf-8", "replace").decode()

"""Exceptions: what is told of one that left the subject, whatever it does when it is asked."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

from properties.observation import Raised

MAX_MESSAGE = 2000
MAX_TRACEBACK = 8000
_OURS = str(Path(__file__).parent) + os.sep


def describe(error: BaseException, phase: str) -> Raised:
    """Return type, message, phase and traceback of `error`; an exception whose `str` raises is told so."""
    kind = type(error)
    try:
        message = str(error)
    except BaseException as second:
        message = f"<str() of the exception raised {type(second).__name__}>"
    return Raised(
        type=kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        message=_clean(message, MAX_MESSAGE),
        phase=phase,
        traceback=_clean(_traceback(error), MAX_TRACEBACK),
    )


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

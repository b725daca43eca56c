"""Interrupts: Ctrl-C is heeded also where Python swallows the exception that it raises.

A callback of the garbage collector (Hypothesis has one) or a finaliser cannot raise: Python prints the
exception and goes on, and the run would, too. So an interrupt that was swallowed is raised again, a moment
later: at once it would be raised, and swallowed, in the hook that sees it. Where an exception would crash the
process, it is put off (`reference.uninterrupted`).
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOMENT = 0.01


@contextmanager
def heeded() -> Iterator[None]:
    """Raise a KeyboardInterrupt that is swallowed inside again, until it is not."""
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Timer(_MOMENT, _thread.interrupt_main).start()
        else:
            usual(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual

"""Interrupts: Ctrl-C is heeded also where Python swallows the exception that it raises, or crashes from it.

A callback of the garbage collector (Hypothesis has one) or a finaliser cannot raise: Python prints the
exception and goes on, and the run would, too. So an interrupt that was swallowed is raised again, a moment
later: at once it would be raised, and swallowed, in the hook that sees it.

An extension module that is being imported may take an exception for impossible: that of jaxlib ends the
process with a segmentation fault. So an interrupt is put off until the import is over.
"""

from __future__ import annotations

import _thread
import signal
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


@contextmanager
def put_off() -> Iterator[None]:
    """Let an interrupt that comes inside take effect at the end."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    came: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *details: came.append(details))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if came:
            usual(*came[0])

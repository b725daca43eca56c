"""What jaxlib must not be interrupted in: signals whose handlers raise are put off until it is over.

An extension module that is being imported may take an exception for impossible: that of jaxlib ends the
process with a segmentation fault. And a compilation that an exception leaves goes on in a thread of XLA's,
which crashes when the process ends before it.

Without jax, which is imported inside.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
"""Those that programs raise exceptions for: Ctrl-C, an end that is asked for, and a test's time limit."""


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let what handles a signal that comes inside be called at the end, in the order in which they came.

    Only in the main thread, where Python handles signals; a signal that Python does not handle acts as ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    came: list[tuple[int, Any]] = []
    for each in usual:
        signal.signal(each, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)
        for number, frame in came:
            usual[signal.Signals(number)](number, frame)

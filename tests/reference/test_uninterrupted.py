"""What jaxlib must not be interrupted in is over before a signal's handler is called."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from reference import executable_cache
from reference.executable_cache import Executable
from reference.uninterrupted import SIGNALS, uninterrupted


def interrupt(number: int = signal.SIGINT) -> None:
    """Send this process a signal, and give Python the time to handle it."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def handled(request):
    """A signal whose handler raises."""

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    usual = signal.signal(request.param, handler)
    yield request.param
    assert signal.getsignal(request.param) is handler
    signal.signal(request.param, usual)


def test_a_signal_is_put_off_until_the_end(handled):
    went_on = []

    def interrupted():
        with uninterrupted():
            interrupt(handled)
            went_on.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert went_on


def test_what_raises_inside_is_raised_and_handlers_are_as_before(handled):
    with pytest.raises(ValueError, match="inside"), uninterrupted():
        raise ValueError("inside")


def test_where_interrupts_are_ignored_they_stay_so():
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)


def test_in_another_thread_nothing_is_put_off():
    seen: list[Any] = []

    def look() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_a_compilation_is_over_before_an_interrupt_is_raised(tmp_path: Path, monkeypatch):
    """XLA goes on with one that is left, in a thread that crashes when the process ends before it."""
    compiled = []

    class Lowered:
        def lower(self, *arguments: Any) -> Lowered:
            return self

        def compile(self, **options: Any) -> Any:
            interrupt()
            compiled.append(options)
            return lambda *arguments: None

    monkeypatch.setattr(executable_cache.jax, "jit", lambda function: Lowered())
    with pytest.raises(KeyboardInterrupt):
        Executable(lambda x: x, "function", like=0, folder=tmp_path)(1.0)
    assert compiled

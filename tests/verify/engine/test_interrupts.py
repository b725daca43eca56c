"""Interrupts that Python swallows are raised again."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from verify.engine.interrupts import heeded


class Interrupted:
    """Interrupts its process when it is collected, once."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


@pytest.fixture
def collector() -> Iterator[list[str]]:
    """Yield the phases in which a callback of the collector has interrupted the process, once."""
    seen: list[str] = []

    def interrupt(phase: str, _: dict[str, Any]) -> None:
        if not seen:
            seen.append(phase)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    gc.callbacks.append(interrupt)
    try:
        yield seen
    finally:
        gc.callbacks.remove(interrupt)


def interrupted_by(action: Callable[[], object]) -> None:
    with heeded():
        action()
        time.sleep(1.0)


def test_an_interrupt_in_a_callback_of_the_collector_is_raised_after_it(collector: list[str]) -> None:
    collector.clear()
    with pytest.raises(KeyboardInterrupt):
        interrupted_by(gc.collect)
    assert collector == ["start"]


def test_an_interrupt_in_a_finaliser_is_raised_after_it() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted_by(Interrupted)


def test_what_else_cannot_be_raised_is_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", told.append)

    class Broken:
        def __del__(self) -> None:
            raise ValueError("in a finaliser")

    with heeded():
        Broken()
    assert [type(one.exc_value) for one in told] == [ValueError]


@pytest.mark.parametrize("command", ["run", "replay", "faults", "bench", "doctor"])
def test_a_command_imports_jax_only_where_an_interrupt_is_put_off(command: str) -> None:
    """An interrupt in the import of jaxlib aborts the process, or is lost, and the run goes on."""
    code = f"import sys, verify.cli.main, verify.cli.{command}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

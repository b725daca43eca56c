"""A worker: a process that judges units of work, one after the other, with rank groups of its own.

Rules
-----
- Units come as lines of JSON on the standard input, messages go as lines of JSON to the standard output. What
  anything else prints goes to the standard error.
- It ends when its input does, on SIGTERM, and when its parent dies, and never without ending its ranks.
- A terminal's Ctrl-C is the parent's to handle.

Theory of operation
-------------------
One run serves all units: one server of ranks, which imports torch once, and one compiled reference. The ranks
of a fault are forked from that server when they are needed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from verify.config import Config, setting_texts
from verify.engine.engine import Run
from verify.engine.examiner import machinery
from verify.measure.diagnosis.naming import judge_apart
from verify.measure.power.fault_campaign import judge_fault, judge_right
from verify.measure.power.outcome import Beat, Broken, Message, Outcome, Ready
from verify.measure.power.work_units import ApartUnit, FaultUnit, Unit

_PR_SET_PDEATHSIG = 1
_BEAT_SECONDS = 1.0


def main() -> None:
    """Judge units until the standard input ends."""
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave = _Leave()
    signal.signal(signal.SIGTERM, leave)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    machinery(threads=1, cpu_only=True)
    try:
        with Run() as run:
            leave.at_once()
            serve(sys.stdin.buffer, messages, run)
    except BrokenPipeError:
        sys.exit(0)  # the parent is gone


class _Leave:
    """Handles SIGTERM: the process leaves at once, but not while it imports or its run is half made.

    An exception in the middle of the import of an extension module aborts the process, which then closes
    nothing.
    """

    def __init__(self) -> None:
        self._wanted = self._ready = False

    def __call__(self, *_: object) -> None:
        self._wanted = True
        if self._ready:
            sys.exit(0)

    def at_once(self) -> None:
        """From now on leave at once; also if the signal has come already."""
        self._ready = True
        if self._wanted:
            sys.exit(0)


def serve(units: BinaryIO, messages: BinaryIO, run: Run) -> None:
    """Judge the units of one stream with `run`, and send what comes out to another."""

    def send(message: Message) -> None:
        messages.write(msgspec.json.encode(message) + b"\n")
        messages.flush()

    decoder: msgspec.json.Decoder[Unit] = msgspec.json.Decoder(Unit)
    send(Ready())
    for line in units:
        send(_outcome(decoder.decode(line), run, beat=_Beats(send)))


def _outcome(unit: Unit, run: Run, *, beat: Callable[[], None]) -> Outcome:
    try:
        return judge(unit, run, beat=beat)
    except Exception:  # Ours, not the subject's: the campaign takes what a subject does.
        return Broken(reason=traceback.format_exc())


def judge(unit: Unit, run: Run, *, beat: Callable[[], None] = lambda: None) -> Outcome:
    """Return what `unit` finds out, on the ranks of `run`.

    Args:
        unit: What to judge.
        run: An open run.
        beat: Called again and again meanwhile.
    """
    if isinstance(unit, FaultUnit):
        return judge_fault(unit, run.examiner(run.subject(unit.card.spec)), beat=beat)
    if isinstance(unit, ApartUnit):
        return judge_apart(unit, run.examiner(run.subject(unit.card.spec)), beat=beat)
    config = Config(domain=setting_texts(unit.domain), grade=unit.card.grade)
    subject = run.subject(unit.card.spec, config=config)
    return judge_right(unit, run.examiner(subject), keep=run.keep, beat=beat)


class _Beats:
    """Sends a beat when it is called, at most one a second."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last >= _BEAT_SECONDS:
            self._last = now
            self._send(Beat())

"""Child processes of a bench: fresh interpreters, timed from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import verify
from verify.errors import RankError
from verify.record.kept_cases import DATA_FOLDER

_LEAVE_SECONDS = 15.0
ROOT = Path(verify.__file__).parents[1]
"""The folder from which a fresh interpreter imports this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A child that has ended: wall seconds, CPU seconds with all that it waited for, and its output."""

    seconds: float
    cpu: float
    output: str


def start(
    arguments: Sequence[str],
    output: IO[bytes],
    errors: IO[bytes],
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a fresh interpreter with these arguments, in a process group of its own."""
    path = os.pathsep.join(path for path in (str(ROOT), *sys.path) if path)
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        process_group=0,
    )


def run_child(
    arguments: Sequence[str], *, codes: Sequence[int] = (0,), environment: Mapping[str, str] | None = None
) -> Ended:
    """Run a fresh interpreter with these arguments, and wait for it.

    Raises:
        RankError: If it does not end with one of `codes`.
    """
    with tempfile.TemporaryDirectory(prefix="syncbn-verify-bench-") as folder:
        output, errors = Path(folder) / "out", Path(folder) / "errors"
        own = {DATA_FOLDER: folder, **(environment or {})}
        began = time.perf_counter()
        with output.open("wb") as out, errors.open("wb") as err:
            child = start(arguments, out, err, own)
        try:
            _, status, used = os.wait4(child.pid, 0)
        except BaseException:
            _interrupt(child)
            raise
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode not in codes:
            last = (errors.read_text(errors="replace") or output.read_text(errors="replace"))[-2000:]
            raise RankError(
                f"Expected {' '.join(arguments)!r} to end with {codes}, but got {child.returncode}: {last}"
            )
        text = output.read_text(errors="replace")
        return Ended(seconds=seconds, cpu=used.ru_utime + used.ru_stime, output=text)


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it started: as by Ctrl-C first, then by force."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_LEAVE_SECONDS)
            return
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def last_json(ended: Ended) -> dict[str, Any]:
    """Return the object on the last line of a child's output."""
    found: dict[str, Any] = json.loads(ended.output.strip().splitlines()[-1])
    return found

"""The command `bench`: measures the figures asked for one after the other, tells each, and writes them."""

from __future__ import annotations

import datetime
import os
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from verify import errors
from verify.environment import environment, one_line
from verify.errors import UsageError
from verify.measure.bench.figure import Effort, Figure, Tell
from verify.measure.bench.figure_text import HEADER, document, lines
from verify.measure.bench.history import FILE, append, entry, last_values, read, worse
from verify.measure.bench.registry import MODULES, measure_of
from verify.strict_json import line


def bench_command(arguments: Namespace) -> int:
    """Do `python -m verify bench` and return its exit code.

    Raises:
        UsageError: If a figure is unknown or a file cannot be written.
    """
    names = _chosen(arguments.names)
    _check(arguments)
    facts = _facts(arguments.words)
    effort = Effort(quick=arguments.quick, memory_cases=arguments.memory_cases)
    last = {} if arguments.quick else last_values(read(), cores=facts["environment"]["cores"])
    bench = Bench(sys.stdout, effort, last)
    load = ", ".join(f"{one:.1f}" for one in facts["load"])
    bench.write(f"{one_line(device='cpu', backend='gloo')}; load {load}", HEADER)
    try:
        for name in names:
            bench.measure(name)
    finally:
        if arguments.json:
            data = document(bench.figures, failed=bench.failed, facts=facts)
            Path(arguments.json).write_text(line(data) + "\n", "utf-8")
        bench.write(bench.conclusion())
    if arguments.record_history and bench.figures:
        append(entry(bench.figures, facts))
    return bench.exit_code


def _check(arguments: Namespace) -> None:
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise UsageError(
            f"Expected --json to be writable, but got {arguments.json!r}: there is no such folder."
        )
    if arguments.record_history and arguments.quick:
        raise UsageError("Expected --record-history without --quick, whose numbers say little.")
    if arguments.record_history and not FILE.parent.is_dir():
        raise UsageError(f"Expected --record-history in a checkout, but there is no folder {FILE.parent}.")


def _chosen(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in MODULES:
            raise UsageError(f"Expected figures among {', '.join(MODULES)}, but got {name!r}.")
    return [name for name in MODULES if name in names or not names]


def _facts(words: list[str]) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "date": now,
        "environment": environment(device="cpu", backend="gloo"),
        "load": list(os.getloadavg()),
        "command": ["verify", *words],
    }


class Bench:
    """What was measured so far; tells it on `stream`, beside what was recorded last."""

    def __init__(self, stream: TextIO, effort: Effort, last: Mapping[str, tuple[float, str]]) -> None:
        self.worse: list[str] = []
        self._last = last
        self.figures: list[Figure] = []
        self.failed: dict[str, str] = {}
        self._stream = stream
        self._effort = effort
        self._began = time.monotonic()

    @property
    def exit_code(self) -> int:
        """0 if every target is met, 1 if not, 70 if a figure could not be measured."""
        if self.failed:
            return errors.INTERNAL
        return errors.OK if all(figure.met for figure in self.figures) else errors.NOT_MET

    def measure(self, name: str) -> None:
        """Measure the figures of `name`; a failure of ours is told, and the others go on."""
        try:
            with _told(name, self._stream) as tell:
                figures = measure_of(name)(self._effort, tell)
        except Exception:
            self.failed[name] = traceback.format_exc()
            self.write(f"{name}: not measured\n{self.failed[name]}")
            return
        for figure in figures:
            self.figures.append(figure)
            self.write(*lines(figure))
            if told := worse(figure, self._last):
                self.worse.append(figure.name)
                self.write(f"    {told}")

    def write(self, *texts: str) -> None:
        """Write lines, at once."""
        self._stream.write("\n".join(texts) + "\n")
        self._stream.flush()

    def conclusion(self) -> str:
        """Return the last line."""
        met = sum(figure.met for figure in self.figures)
        seconds = time.monotonic() - self._began
        failed = f"; not measured: {', '.join(self.failed)}" if self.failed else ""
        fallen = f"; worse than recorded: {', '.join(self.worse)}" if self.worse else ""
        return f"{met} of {len(self.figures)} targets met, in {seconds:.0f} s{failed}{fallen}"


@contextmanager
def _told(name: str, stream: TextIO) -> Iterator[Tell]:
    """Show on a terminal what is being measured; in a log nothing, the figures are lines enough."""
    if not stream.isatty():
        yield lambda text: None
        return
    with Console(file=stream, highlight=False, markup=False).status(name) as status:
        yield lambda text: status.update(f"{name}: {text}")

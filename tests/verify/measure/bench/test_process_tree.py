"""The process tree: CPU time and memory of real processes."""

from __future__ import annotations

import subprocess
import sys
import time

from verify.measure.bench.process_tree import cpu_seconds, shared_bytes

_BUSY = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.5: pass\n"


def _child(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_cpu_of_a_grandchild_counts_alive_and_dead() -> None:
    run = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_BUSY!r}])"
    nested = f"{run}; print('done', flush=True); input()"
    before = cpu_seconds()
    child = _child(nested)
    assert child.stdout is not None
    child.stdout.readline()
    alive = cpu_seconds() - before
    child.communicate(b"\n")
    dead = cpu_seconds() - before
    assert alive >= 0.45
    assert dead >= alive - 0.02  # waited for: it counts once, in this process


def test_sleeping_costs_nothing() -> None:
    before = cpu_seconds()
    time.sleep(0.3)
    assert cpu_seconds() - before < 0.2


def test_memory_of_a_child_counts_while_it_lives() -> None:
    child = _child("data = b'x' * 60_000_000; print('ready', flush=True); input()")
    assert child.stdout is not None
    child.stdout.readline()
    with_child = shared_bytes()
    child.communicate(b"\n")
    assert with_child - shared_bytes() > 50_000_000

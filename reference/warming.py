"""Warming: another process compiles the common programs, while this one needs the first of them.

Rules
-----
- From the rarest of the common programs to the commonest, then those of large cases: who started it meets
  them from the other end, and what one keeps the other loads. What both compile at a time costs time alone.
- One such process for a folder of executables: another one leaves at once.
- It ends with who started it, however that ends, and at the latest when all are kept.

Theory of operation
-------------------
A first run compiles some 25 programs, one after the other, each 5 to 10 s of one core, while the ranks wait
and another core is idle. A thread would not do: half of that time is jax's own tracing, in Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reference.host import CACHE_OPTION, configure_cache, precise, start
from reference.padding import COMMON, REPEATED, Bucket
from reference.program import compiled_step
from reference.signature import StepInput, StepScalars

_WORTH_IT = 5
"""Programs that must be lacking: fewer are compiled before such a process has imported jax."""
_NICENESS = 5
_RUN = "import sys; sys.path.insert(0, sys.argv[1]); from reference.warming import main; main()"


@contextlib.contextmanager
def warmed() -> Iterator[None]:
    """Have the common programs compiled beside, inside, if some are lacking and there is a second core."""
    lacking = sum(not compiled_step(bucket).kept for bucket in COMMON)
    if lacking < _WORTH_IT or len(os.sched_getaffinity(0)) < 2:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _RUN, str(Path(__file__).parents[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, CACHE_OPTION.upper(): str(configure_cache())},
    )
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Compile what is lacking, unless another process does; end when the standard input does."""
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    os.nice(_NICENESS)
    start(threads=1, cpu_only=True)
    folder = configure_cache()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "warming.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        with precise():
            for bucket in (*reversed(COMMON), *REPEATED):
                compiled_step(bucket).keep(blank(bucket))


def blank(bucket: Bucket) -> StepInput:
    """Return a step's input of zeros, with the shapes and dtypes of this bucket's."""
    shards, length, channels = bucket[:3]
    block = np.zeros((shards, length, channels))
    return StepInput(
        x=block,
        g=block,
        mask=np.zeros((shards, length), np.float64 if bucket.repeats else np.bool_),
        owner=np.zeros(shards, np.int32),
        parameters=np.zeros((6, channels)),
        depths=np.zeros((shards, 1)),
        scalars=np.zeros(len(StepScalars._fields)),
    )


def _end_with_the_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)

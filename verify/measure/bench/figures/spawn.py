"""The spawn ratio: one case as a process-per-rank test / a verified case.

The test starts fresh processes, which import torch, join a gloo group by a file store, run forward and
backward and compare with the concatenated batch (`verify.ranks.worker.process_per_rank`), as tests on torch's
`MultiProcessTestCase` do. Tests and blocks of verified cases alternate.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

from properties.case import Case, encode
from verify.errors import RankError
from verify.measure.bench.child import start
from verify.measure.bench.figure import Effort, Figure, Tell
from verify.measure.bench.timed_campaign import bench_run
from verify.subjects.builtins import BUILTINS

TARGET = 300.0
SUBJECT = "torch"
CASE = Case(batches=(3, 1), channels=3, spatial=((4, 4),), seed=1)
_SECONDS = 120.0


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return the figure, of medians."""
    rounds, cases = effort.of(4, 1), effort.of(100, 8)
    tests, verified = [], []
    with bench_run() as run:
        for number in range(rounds + 1):
            tell(f"round {number} of {rounds}: processes for one case, then {cases} cases")
            seconds = process_per_rank(CASE)
            block = run.verified(SUBJECT, cases, seed=1 + number, world_size=CASE.world_size)
            if number:
                tests.append(seconds)
                verified.append(block.each)
    details = {"test_s": median(tests), "verified_ms": 1e3 * median(verified), "ranks": CASE.world_size}
    value = median(tests) / median(verified)
    return (Figure(name="spawn ratio", value=value, target=TARGET, sense="at least", details=details),)


def process_per_rank(case: Case) -> float:
    """Return the wall seconds of one such test.

    Raises:
        RankError: If a process fails.
    """
    spec = BUILTINS[SUBJECT].spec
    with tempfile.TemporaryDirectory(prefix="syncbn-verify-bench-") as folder:
        began = time.perf_counter()
        log = (Path(folder) / "log").open("wb")
        with log:
            module = ("-m", "verify.ranks.worker.process_per_rank", folder)
            ranks = [
                start((*module, str(rank), encode(case).decode(), spec), log, log)
                for rank in range(case.world_size)
            ]
            try:
                codes = [rank.wait(_SECONDS) for rank in ranks]
            except subprocess.TimeoutExpired:
                codes = []
            finally:
                for rank in ranks:
                    rank.kill()
                    rank.wait()
        seconds = time.perf_counter() - began
        if any(codes) or not codes:
            told = (Path(folder) / "log").read_text(errors="replace")[-2000:]
            raise RankError(f"Expected a process for each rank to end with 0, but got {codes}: {told}")
        return seconds

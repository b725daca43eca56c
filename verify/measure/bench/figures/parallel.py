"""The parallel gain: how busy the cores are under `pytest -n auto`, and how many more cases that judges.

A test file that judges one subject, in shards, as a user's own suite does, runs under `-n auto` and under
`-n 0`, from start to end, imports included.
"""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

from verify.environment import cores
from verify.measure.bench.child import Ended, run_child
from verify.measure.bench.figure import Effort, Figure, Tell

TARGET_BUSY, TARGET_GAIN, SHARE_OF_POSSIBLE = 0.85, 1.4, 0.9
CASES = 1200
SUBJECT = "aggregated"
PLUGIN = "verify.entry"
SUITE = '''"""A suite of one subject; so few cases that nothing can be said of it are timed all the same."""

import contextlib

import verify
from verify.pytest.shard import Undecided


@verify.parametrize({subject!r}, cases={cases}, min_cases=1, seed=1)
def test_subject(check):
    with contextlib.suppress(Undecided):
        check()
'''


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return both figures."""
    cases = effort.of(CASES, 16)
    with tempfile.TemporaryDirectory(prefix="syncbn-verify-bench-") as folder:
        suite = Path(folder) / "test_subject.py"
        suite.write_text(SUITE.format(subject=SUBJECT, cases=cases))
        ended: dict[str, Ended] = {}
        for workers in ("auto", "0"):
            tell(f"{cases} cases with -n {workers}")
            ended[workers] = run_child(pytest_words(suite, workers))
    alone, together = ended["0"], ended["auto"]
    busy = {workers: one.cpu / (one.seconds * cores()) for workers, one in ended.items()}
    details = {
        f"-n {workers}": {
            "seconds": one.seconds,
            "cpu_seconds": one.cpu,
            "cores_busy": busy[workers],
            "cases_per_second": cases / one.seconds,
        }
        for workers, one in ended.items()
    }
    target = min(TARGET_GAIN, SHARE_OF_POSSIBLE / busy["0"])
    gain = alone.seconds / together.seconds
    return (
        Figure(
            name="cores busy, -n auto",
            value=busy["auto"],
            target=TARGET_BUSY,
            sense="at least",
            details=details,
        ),
        Figure(name="parallel gain", value=gain, target=target, sense="at least"),
    )


def pytest_words(suite: Path, workers: str) -> tuple[str, ...]:
    """Return the words after `python` that run `suite` alone with so many workers."""
    known = any(entry.name == "syncbn-verify" for entry in entry_points(group="pytest11"))
    plugin = () if known else ("-p", PLUGIN)
    alone = ("-p", "no:cacheprovider", "--rootdir", str(suite.parent), "-c", os.devnull)
    return ("-m", "pytest", str(suite), "-q", "-n", workers, *plugin, *alone)

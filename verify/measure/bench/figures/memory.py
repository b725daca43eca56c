"""Memory: the largest proportional set size of the whole process tree while cases run on four ranks.

`python -m verify.measure.bench.figures.memory N` is the child that is watched: it runs two campaigns of N /
2 cases, and a thread adds up the tree several times a second. Flat means that the second half's peak is not
above the first's.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from verify.measure.bench.child import last_json, run_child
from verify.measure.bench.figure import Effort, Figure, Tell
from verify.measure.bench.process_tree import shared_bytes

TARGET_GB, TARGET_GROWTH = 1.5, 1.05
CASES = 1000
SUBJECT = "torch"
WORLD_SIZE = 4
_INTERVAL = 0.25


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return both figures."""
    cases = effort.memory_cases or effort.of(CASES, 8)
    tell(f"{cases} cases of {SUBJECT} on {WORLD_SIZE} ranks")
    seen = last_json(run_child(("-m", "verify.measure.bench.figures.memory", str(cases))))
    first, second = seen["peaks"]
    details = {"first_half_gb": first / 1e9, "second_half_gb": second / 1e9, "samples": seen["samples"]}
    details |= {"cases": seen["cases"]}
    peak = max(first, second) / 1e9
    return (
        Figure(name="memory", value=peak, target=TARGET_GB, unit="GB", details=details),
        Figure(name="memory, second half / first", value=second / first, target=TARGET_GROWTH),
    )


class Sampler:
    """Watches the tree of this process from a thread; `peak` is the largest sum since it was last read."""

    def __init__(self) -> None:
        self.samples = 0
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak(self) -> int:
        """Return the peak in bytes, and start anew."""
        self._look()
        peak, self._peak = self._peak, 0
        return peak

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        self._peak = max(self._peak, shared_bytes())
        self.samples += 1


def watch(cases: int) -> dict[str, Any]:
    """Run so many cases in two halves, and return the peak of each."""
    from verify.measure.bench.timed_campaign import bench_run

    sampler, peaks, judged = Sampler(), [], 0
    with bench_run() as run:
        for half in (1, 2):
            block = run.verified(SUBJECT, max(1, cases // 2), seed=half, world_size=WORLD_SIZE)
            judged += len(block.cases) + block.left_out
            peaks.append(sampler.peak())
    sampler.close()
    return {"peaks": peaks, "samples": sampler.samples, "cases": judged}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(watch(int(sys.argv[1]))) + "\n")

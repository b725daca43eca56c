"""The reference share: CPU time of reference, bound and judge / CPU time of whole cases, ranks included."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from verify.engine.examiner import machinery
from verify.measure.bench.figure import Effort, Figure, Tell
from verify.measure.bench.process_tree import cpu_seconds
from verify.measure.bench.timed_campaign import bench_run

TARGET = 0.2


class _Meter:
    """Adds up the CPU seconds of this process inside the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def metered(*args: Any, **more: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **more)
            finally:
                self.seconds += time.process_time() - began

        return metered


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return the figure: the median over rounds of default cases of `torch`, once everything is compiled."""
    rounds, cases = effort.of(4, 1), effort.of(150, 8)
    parts, reference, judge = machinery(threads=1, cpu_only=True), _Meter(), _Meter()
    parts = dataclasses.replace(parts, expect=reference.wrap(parts.expect), judge=judge.wrap(parts.judge))
    shares, told = [], []
    with bench_run(parts) as run:
        for number in range(rounds + 1):
            tell(f"round {number} of {rounds}: torch")
            before = (cpu_seconds(), time.process_time(), reference.seconds, judge.seconds)
            run.verified("torch", cases, seed=1 + number)
            after = (cpu_seconds(), time.process_time(), reference.seconds, judge.seconds)
            whole, parent, expecting, judging = (b - a for a, b in zip(before, after, strict=True))
            if number:
                shares.append((expecting + judging) / whole)
                told.append({"ranks": 1 - parent / whole, "reference": expecting / whole})
                told[-1] |= {
                    "judge": judging / whole,
                    "rest_of_parent": (parent - expecting - judging) / whole,
                }
    details = {name: median(one[name] for one in told) for name in told[0]}
    details |= {"least": min(shares), "greatest": max(shares)}
    return (Figure(name="reference share", value=median(shares), target=TARGET, details=details),)

"""The draw: CPU time of one Hypothesis draw of a default case, as a campaign draws."""

from __future__ import annotations

import time

from verify.measure.bench.draws import draw_cases
from verify.measure.bench.figure import Effort, Figure, Tell

TARGET_MS = 1.5


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return the figure: the least of three repetitions, of as many draws each."""
    tell("draws")
    draws = effort.of(2000, 100)
    _cpu(200, seed=0)  # imports, caches
    each = [1e3 * _cpu(draws, seed=seed) for seed in (1, 2, 3)]
    details = {"draws": draws, "least_ms": min(each), "greatest_ms": max(each)}
    return (Figure(name="draw", value=min(each), target=TARGET_MS, unit="ms", details=details),)


def _cpu(draws: int, *, seed: int) -> float:
    """Return the CPU seconds a draw, the start of Hypothesis included."""
    began = time.process_time()
    drawn = draw_cases(lambda case: None, number=draws, seed=seed)
    return (time.process_time() - began) / drawn

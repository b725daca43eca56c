"""The draw: CPU time of one Hypothesis draw of a default case, as a campaign draws."""

from __future__ import annotations

import time

from properties.case import Case
from properties.domain import Domain
from verify.bench.figure import Effort, Figure, Tell
from verify.minimise import hunt

TARGET_MS = 1.5


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return the figure: the least of three repetitions, of as many draws each."""
    from properties.strategies import cases

    tell("draws")
    strategy, draws = cases(Domain()), effort.of(2000, 100)
    _cpu(strategy, 200, seed=0)  # imports, caches
    each = [1e3 * _cpu(strategy, draws, seed=seed) for seed in (1, 2, 3)]
    details = {"draws": draws, "least_ms": min(each), "greatest_ms": max(each)}
    return (Figure(name="draw", value=min(each), target=TARGET_MS, unit="ms", details=details),)


def _cpu(strategy: object, draws: int, *, seed: int) -> float:
    """Return the CPU seconds a draw, the start of Hypothesis included."""
    drawn = 0

    def take(case: Case) -> None:
        nonlocal drawn
        drawn += 1

    began = time.process_time()
    hunt(strategy, take, lambda case, kind: False, seed=seed, limit=draws, seconds=1.0)
    return (time.process_time() - began) / drawn

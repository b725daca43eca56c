"""The speed of the machine: how much longer some fixed work takes here than where limits were chosen."""

from __future__ import annotations

import time
from collections.abc import Callable

NOMINAL_SECONDS = 0.005
"""CPU time of the work on the machine for which the limits were chosen, with some room."""
MOST = 20.0
_TIMES = 3


def slowness(
    work: Callable[[], object] | None = None, clock: Callable[[], float] = time.thread_time
) -> float:
    """Return by which factor limits are longer here, from 1 to `MOST`.

    By CPU time, so that a crowded machine is not taken for a slow one, and the best of three.

    Args:
        work: What is measured; by default some Python and some small tensors.
        clock: CPU seconds of this thread.
    """
    work = work or _work
    best = float("inf")
    for _ in range(_TIMES):
        started = clock()
        work()
        best = min(best, clock() - started)
    return min(MOST, max(1.0, best / NOMINAL_SECONDS))


def _work() -> None:
    import torch

    total = 0
    for number in range(20_000):
        total += number * number
    values = torch.ones(8, 16)
    for _ in range(300):
        values = values * 0.5 + 1.0

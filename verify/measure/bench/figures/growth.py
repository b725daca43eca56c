"""Growth: how the time of a case grows with its elements and with its ranks, beside the bare step's.

The exponent is the slope of the least-squares line through log(time) against log(size), each time a median.
Verified cases and bare steps alternate. A target is the bare step's own exponent and a margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median

from properties.case import Case
from verify.measure.bench.figure import Effort, Figure, Tell
from verify.measure.bench.timed_campaign import BenchRun, bench_run

MARGIN = 0.05
SUBJECT = "torch"
ELEMENTS = (10**3, 10**4, 10**5, 10**6, 10**7)
WORLD_SIZES = (1, 2, 4, 8)
REPETITIONS = 15
_SECONDS_A_SIZE = 6.0


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return both figures."""
    by_elements = [(n, elements_case(n)) for n in ELEMENTS[: effort.of(5, 2)]]
    by_ranks = [(n, ranks_case(n)) for n in WORLD_SIZES[: effort.of(4, 2)]]
    repetitions = effort.of(REPETITIONS, 2)
    with bench_run() as run:
        return (
            _figure("growth with elements", by_elements, run, tell, repetitions=repetitions),
            _figure("growth with ranks", by_ranks, run, tell, repetitions=repetitions),
        )


def elements_case(elements: int) -> Case:
    """Return a float32 case of so many elements over 2 ranks: 5 samples each, 10 channels, one dimension."""
    return Case(batches=(5, 5), channels=10, spatial=((elements // 100,),), random_parameters=True)


def ranks_case(world_size: int) -> Case:
    """Return a case of 2 images of 4 channels on each rank."""
    return Case(batches=(2,) * world_size, channels=4, spatial=((4, 4),), random_parameters=True)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the slope of the least-squares line through log(time) against log(size)."""
    x, y = [math.log(size) for size in sizes], [math.log(time) for time in times]
    x_mean, y_mean = mean(x), mean(y)
    over = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return over / sum((a - x_mean) ** 2 for a in x)


def _figure(
    name: str, cases: Sequence[tuple[int, Case]], run: BenchRun, tell: Tell, *, repetitions: int
) -> Figure:
    verified, bare = [], []
    for size, case in cases:
        tell(f"{name}: {size}")
        one, other = _times(run, case, repetitions)
        verified.append(one)
        bare.append(other)
    sizes = [float(size) for size, _ in cases]
    own, basis = exponent(sizes, verified), exponent(sizes, bare)
    details = {
        "exponent of the bare step": basis,
        "verified_ms": {str(size): 1e3 * time for (size, _), time in zip(cases, verified, strict=True)},
        "bare_ms": {str(size): 1e3 * time for (size, _), time in zip(cases, bare, strict=True)},
    }
    return Figure(name=name, value=own, target=basis + MARGIN, details=details)


def _times(run: BenchRun, case: Case, repetitions: int) -> tuple[float, float]:
    """Return the median seconds of `case` verified and bare; what takes long is repeated less."""
    verified, bare = [], []
    for number in range(repetitions + 1):
        seconds = run.once(SUBJECT, case)
        step = run.bare(SUBJECT, (case,)).seconds
        if number:  # the first compiles and starts ranks
            verified.append(seconds)
            bare.append(step)
        if number and sum(verified) + sum(bare) > _SECONDS_A_SIZE:
            break
    return median(verified), median(bare)

"""Large cases: the harness ratio at ten million elements over two ranks."""

from __future__ import annotations

import math
from statistics import median

from properties.case import Case
from verify.bench.blocks import bench_run
from verify.bench.figure import Effort, Figure, Tell

TARGETS = {"sampled": 2.0, "all": 6.0}
"""By what is judged of output and grad_input; the rest is judged whole in both."""
SAMPLING = False
"""Whether the suite can judge a sample. It cannot yet: the first figure is told as not measured."""
SUBJECT = "torch"


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return both figures, medians over repetitions; the first repetition, which compiles, does not count."""
    case = large_case(effort.of(10_000_000, 100_000))
    repetitions, verified, bare = effort.of(3, 1), [], []
    with bench_run() as run:
        for number in range(repetitions + 1):
            tell(f"repetition {number} of {repetitions}: {case.id}")
            seconds = run.once(SUBJECT, case)
            step = run.bare(SUBJECT, (case,)).seconds
            if number:
                verified.append(seconds)
                bare.append(step)
    ratios = [one / other for one, other in zip(verified, bare, strict=True)]
    details = {
        "elements": case.channels * sum(map(case.count_of, range(case.world_size))),
        "least": min(ratios),
        "greatest": max(ratios),
        "verified_s": median(verified),
        "bare_s": median(bare),
    }
    return (
        Figure(
            name="large cases, sampled",
            value=math.nan,
            target=TARGETS["sampled"],
            details={"not measured": "output and grad_input are always judged whole"},
        ),
        Figure(name="large cases, all judged", value=median(ratios), target=TARGETS["all"], details=details),
    )


def large_case(elements: int) -> Case:
    """Return an ordinary float32 case of images with 64 channels, about `elements` over 2 ranks."""
    side = 56 if elements > 1_000_000 else 14
    batch = max(1, round(elements / (2 * 64 * side * side)))
    return Case(batches=(batch, batch), channels=64, spatial=((side, side),), random_parameters=True)

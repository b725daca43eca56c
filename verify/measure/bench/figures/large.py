"""Large cases: the harness ratio at ten million elements over two ranks."""

from __future__ import annotations

from statistics import median

from properties.case import Case
from verify.measure.bench.figure import Effort, Figure, Tell
from verify.measure.bench.timed_campaign import bench_run

NAME, TARGET = "large cases, all judged", 6.0
SUBJECT = "torch"


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return the figure, a median over repetitions; the first repetition, which compiles, does not count."""
    case = large_case(effort.of(10_000_000, 2_000_000))
    repetitions, verified, bare = effort.of(15, 1), [], []
    with bench_run() as run:
        for number in range(repetitions + 1):
            tell(f"{NAME}, repetition {number} of {repetitions}: {case.id}")
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
    return (Figure(name=NAME, value=median(ratios), target=TARGET, details=details),)


def large_case(elements: int) -> Case:
    """Return an ordinary float32 case of images with 64 channels, about `elements` over 2 ranks."""
    side = 56 if elements > 1_000_000 else 14
    batch = max(1, round(elements / (2 * 64 * side * side)))
    return Case(batches=(batch, batch), channels=64, spatial=((side, side),), random_parameters=True)

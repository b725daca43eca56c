"""Large cases: the harness ratio at ten million elements over two ranks."""

from __future__ import annotations

from statistics import median

from properties.case import Case
from verify.measure.bench.figure import Effort, Figure, Tell
from verify.measure.bench.timed_campaign import bench_run

TARGETS = {"sampled": 2.0, "all judged": 6.0}
"""By what is judged of output and grad_input; the rest is judged whole in both."""
SUBJECT = "torch"


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return both figures, medians over repetitions; the first repetition, which compiles, does not count."""
    case = large_case(effort.of(10_000_000, 2_000_000))
    return tuple(_measured(name, case, effort, tell, every_element=name == "all judged") for name in TARGETS)


def _measured(name: str, case: Case, effort: Effort, tell: Tell, *, every_element: bool) -> Figure:
    repetitions, verified, bare = effort.of(15, 1), [], []
    with bench_run(every_element=every_element) as run:
        for number in range(repetitions + 1):
            tell(f"{name}, repetition {number} of {repetitions}: {case.id}")
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
    return Figure(name=f"large cases, {name}", value=median(ratios), target=TARGETS[name], details=details)


def large_case(elements: int) -> Case:
    """Return an ordinary float32 case of images with 64 channels, about `elements` over 2 ranks."""
    side = 56 if elements > 1_000_000 else 14
    batch = max(1, round(elements / (2 * 64 * side * side)))
    return Case(batches=(batch, batch), channels=64, spatial=((side, side),), random_parameters=True)

"""The harness ratio: time of a verified case / time of the bare step, on the same ranks and the same cases.

Blocks of verified cases and of their bare steps alternate, so that both meet the same machine; the first
round, which compiles and starts ranks, does not count. A figure is the median over the rounds. Beside it
stands the ratio of CPU times, of all processes, which other work on the machine disturbs less.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from verify.measure.bench.figure import Effort, Figure, Tell
from verify.measure.bench.timed_campaign import Bare, Block, bench_run

TARGET = 1.5
SUBJECTS = ("torch", "aggregated")
WORLD_SIZES = (2, 4)


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return the figure: the worst of the subjects and numbers of ranks."""
    rounds, cases = effort.of(5, 1), effort.of(100, 8)
    places = [(spec, world_size) for spec in SUBJECTS for world_size in WORLD_SIZES]
    seen: dict[tuple[str, int], list[_Round]] = {place: [] for place in places}
    with bench_run() as run:
        for number in range(rounds + 1):
            for spec, world_size in places:
                tell(f"round {number} of {rounds}: {spec} on {world_size} ranks")
                block = run.verified(spec, cases, seed=1 + number, world_size=world_size)
                bare = run.bare(spec, block.cases)
                if number:
                    seen[spec, world_size].append(_Round(block, bare))
    details = {f"{spec}, {size} ranks": _told(rounds) for (spec, size), rounds in seen.items()}
    worst = max(told["ratio"] for told in details.values())
    return (Figure(name="harness ratio", value=worst, target=TARGET, details=details),)


class _Round:
    """One block of verified cases and their bare steps."""

    def __init__(self, block: Block, bare: Bare) -> None:
        self.cases, self.left_out = len(block.cases), block.left_out
        self.ratio = sum(block.seconds) / bare.seconds
        self.cpu_ratio = block.cpu / (bare.cpu / self.cases)
        self.verified_ms, self.bare_ms = 1e3 * block.each, 1e3 * bare.seconds / self.cases


def _told(rounds: list[_Round]) -> dict[str, Any]:
    ratios = [one.ratio for one in rounds]
    return {
        "ratio": median(ratios),
        "least": min(ratios),
        "greatest": max(ratios),
        "cpu_ratio": median(one.cpu_ratio for one in rounds),
        "verified_ms": median(one.verified_ms for one in rounds),
        "bare_ms": median(one.bare_ms for one in rounds),
        "cases": sum(one.cases for one in rounds),
        "left_out": sum(one.left_out for one in rounds),
    }

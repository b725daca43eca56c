"""Compilations: what the reference compiles for 2,000 default cases with a fresh cache, and in a second run.

`python -m verify.measure.bench.figures.compilations N` is the child: it draws N cases as a campaign with
seed 1 does and computes what is expected of them, without ranks, which compile nothing of jax's; it prints
what jax counts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from typing import Any

from verify.measure.bench.child import last_json, run_child
from verify.measure.bench.draws import draw_cases
from verify.measure.bench.figure import Effort, Figure, Tell

TARGET, TARGET_AGAIN = 40, 0
CASES = 2000
_EVENTS = "/jax/compilation_cache/"


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return both figures."""
    cases = effort.of(CASES, 5)
    with tempfile.TemporaryDirectory(prefix="syncbn-verify-bench-") as folder:
        counts = []
        for words in ("an empty cache", "the cache of the first run"):
            tell(f"{cases} cases with {words}")
            arguments = ("-m", "verify.measure.bench.figures.compilations", str(cases))
            ended = run_child(arguments, environment={"JAX_COMPILATION_CACHE_DIR": folder})
            counts.append(last_json(ended) | {"seconds": ended.seconds, "cpu_seconds": ended.cpu})
    first, again = counts
    return (
        Figure(name="compilations", value=first["misses"], target=TARGET, details=first),
        Figure(name="compilations, second run", value=again["misses"], target=TARGET_AGAIN, details=again),
    )


def count(cases: int) -> dict[str, Any]:
    """Compute what is expected of so many cases, and return the cache's misses and hits."""
    import jax.monitoring

    from properties.domain import Contract
    from properties.expectation.expect import expect

    counted: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda event, **more: counted.update((event,)))
    drawn = draw_cases(lambda case: expect(case, Contract(), "A"), number=cases, seed=1)
    hits = counted[f"{_EVENTS}cache_hits"]
    asked = counted[f"{_EVENTS}compile_requests_use_cache"]
    return {"misses": asked - hits, "hits": hits, "cases": drawn}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(count(int(sys.argv[1]))) + "\n")

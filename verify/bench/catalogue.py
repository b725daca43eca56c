"""The catalogue of figures: the names of the command line, and the module that measures each.

Plain data: a module is imported when its figure is measured.
"""

from __future__ import annotations

import importlib

from verify.bench.figure import Measure

MODULES = {
    "harness": "verify.bench.harness",
    "draw": "verify.bench.draw",
    "spawn": "verify.bench.spawn",
    "share": "verify.bench.share",
    "memory": "verify.bench.memory",
    "start": "verify.bench.start",
    "compilations": "verify.bench.compilations",
    "parallel": "verify.bench.parallel",
    "large": "verify.bench.large",
    "growth": "verify.bench.growth",
}
"""In the order in which they are measured."""


def measure_of(name: str) -> Measure:
    """Return what measures the figures of `name`."""
    measure: Measure = importlib.import_module(MODULES[name]).measure
    return measure

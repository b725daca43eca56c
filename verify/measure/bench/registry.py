"""The catalogue of figures: the names of the command line, and the module that measures each.

Plain data: a module is imported when its figure is measured.
"""

from __future__ import annotations

import importlib

from verify.measure.bench.figure import Measure

MODULES = {
    "harness": "verify.measure.bench.figures.harness",
    "draw": "verify.measure.bench.figures.draw",
    "spawn": "verify.measure.bench.figures.spawn",
    "share": "verify.measure.bench.figures.share",
    "memory": "verify.measure.bench.figures.memory",
    "start": "verify.measure.bench.figures.start",
    "compilations": "verify.measure.bench.figures.compilations",
    "parallel": "verify.measure.bench.figures.parallel",
    "large": "verify.measure.bench.figures.large",
    "growth": "verify.measure.bench.figures.growth",
}
"""In the order in which they are measured."""


def measure_of(name: str) -> Measure:
    """Return what measures the figures of `name`."""
    measure: Measure = importlib.import_module(MODULES[name]).measure
    return measure

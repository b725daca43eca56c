"""The cold start: `verify run --cases 1` / `python -c "import torch, jax"`, fresh processes that alternate.

Each is the best of its repetitions, after a run of both that fills the compilation cache and the disk cache.
"""

from __future__ import annotations

from verify.errors import NOT_MET, OK, UNDECIDED
from verify.measure.bench.child import run_child
from verify.measure.bench.figure import Effort, Figure, Tell

TARGET = 2.5
RUN = ("-m", "verify", "run", "--cases", "1", "--seed", "1")
IMPORT = ("-c", "import torch, jax")


def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
    """Return the figure."""
    repetitions = effort.of(3, 1)
    runs, imports = [], []
    for number in range(repetitions + 1):
        tell(f"repetition {number} of {repetitions}")
        run, imported = run_child(RUN, codes=(OK, NOT_MET, UNDECIDED)), run_child(IMPORT)
        if number:
            runs.append(run)
            imports.append(imported)
    run, imported = (min(ended, key=lambda one: one.seconds) for ended in (runs, imports))
    details = {
        "run": {"seconds": run.seconds, "cpu_seconds": run.cpu},
        "import": {"seconds": imported.seconds, "cpu_seconds": imported.cpu},
        "cpu_ratio": run.cpu / imported.cpu,
        "compilation cache": "warm",
    }
    return (Figure(name="cold start", value=run.seconds / imported.seconds, target=TARGET, details=details),)

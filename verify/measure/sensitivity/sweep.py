"""Sensitivity: how small an error of a right subject is caught, by quantity, dtype and size.

A bound that is sound but wide catches little. Each quantity of a right subject is moved by a relative 2^k u,
all its elements or the single one with the smallest bound / |value|, and k is the smallest that is caught on
every seed. The command is `python -m verify faults --sensitivity`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import msgspec

from properties.case import DTYPES, Dtype
from verify import errors
from verify.errors import UsageError
from verify.measure.sensitivity.sensitivity_page import Sensitivity, lines, page
from verify.measure.sensitivity.smallest_caught import AIMS, Cell, Measured, Subject, cell
from verify.measure.sensitivity.strata import STRATA, Stratum, drawn, of_sensitivity
from verify.ranks.pool import RankPool
from verify.report.stamp import stamped

SEEDS = 5
CASES = 40
Task = tuple[Stratum, Dtype, int, int]
"""Stratum, dtype, seeds, cases a seed."""


def sensitivity_command(arguments: Namespace) -> int:
    """Measure, print the tables, write the files asked for, and return the exit code.

    Args:
        arguments: `seeds` (1 to N), `cases` (a seed), `workers`, `json` and `table` (paths); None for the
            defaults.

    Raises:
        UsageError: If a file cannot be written.
        MeasureError: If the right subject is accused, or a rank does not return.
    """
    for option in ("json", "table"):
        _check_writable(option, getattr(arguments, option, None))
    seeds = getattr(arguments, "seeds", None) or SEEDS
    cases = getattr(arguments, "cases", None) or CASES
    workers = getattr(arguments, "workers", None) or os.cpu_count() or 1
    found = measure(tuple(product(STRATA, DTYPES)), seeds=seeds, cases=cases, workers=workers)
    for line in lines(found):
        sys.stdout.write(f"{line}\n")
    if getattr(arguments, "json", None):
        Path(arguments.json).write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    if getattr(arguments, "table", None):
        Path(arguments.table).write_text(stamped(page(found), of_sensitivity()), "utf-8")
    return errors.NOT_MET if found.missed else errors.OK


def _check_writable(option: str, path: str | None) -> None:
    """Find out before a measurement of minutes that its file cannot be written."""
    if path is None:
        return
    try:
        with Path(path).open("a", encoding="utf-8"):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"Expected --{option} to be writable, but got {path!r}: {reason}.") from None


def measure(
    jobs: tuple[tuple[Stratum, Dtype], ...], *, seeds: int, cases: int, workers: int = 1
) -> Sensitivity:
    """Return what is caught in each stratum and dtype of `jobs`.

    Args:
        jobs: What to measure.
        seeds: The seeds are 1 to this.
        cases: Cases a seed.
        workers: Processes, each with ranks of its own; 1 for none beside this one.

    Raises:
        MeasureError: If the right subject is accused, or a rank does not return.
    """
    tasks = [(stratum, dtype, seeds, cases) for stratum, dtype in jobs]
    shares = [tasks[start::workers] for start in range(workers)]
    if workers == 1:
        parts = [_measured(tasks)]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(_measured, shares))
    found = {key: cells for part in parts for key, cells in part.items()}
    every = tuple(one for stratum, dtype in jobs for one in found[stratum.name, dtype])
    return Sensitivity(seeds=seeds, cases=cases, cells=every)


def _measured(tasks: Sequence[Task]) -> dict[tuple[str, str], tuple[Cell, ...]]:
    """Do `tasks` on one pool of ranks."""
    with RankPool(whole=True) as pool, tempfile.TemporaryDirectory() as folder:
        subject = Subject(pool, Path(folder))
        found: dict[tuple[str, str], tuple[Cell, ...]] = {}
        for task in tasks:
            found[task[0].name, task[1]] = _job(task, subject)
            sys.stderr.write(f"measured {task[1]}, {task[0].name}\n")
        return found


def _job(task: Task, subject: Subject) -> tuple[Cell, ...]:
    stratum, dtype, seeds, count = task
    measured = [
        [Measured(case, subject) for case in drawn(stratum, dtype, seed=seed, count=count)]
        for seed in range(1, seeds + 1)
    ]
    return tuple(cell(measured, aim, stratum=stratum.name, dtype=dtype) for aim in AIMS)

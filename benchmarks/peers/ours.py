"""This suite on the same faults: one campaign each, ended at its first failing case."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from verify.config import Config, Policy
from verify.engine.engine import Run

SEED = 1
_POLICY = Policy(fail_fast=True, tries=5, tries_total=5)
Found = tuple[str, float]
"""Properties that its first failing case violates, empty if there is none, and seconds."""


def ours(specs: Sequence[str], *, workers: int) -> dict[str, Found]:
    """Return what a campaign with the default budget finds out about each subject, in `workers` processes."""
    shares = [share for start in range(workers) if (share := specs[start::workers])]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return {spec: found for part in pool.map(_campaigns, shares) for spec, found in part.items()}


def _campaigns(specs: Sequence[str]) -> dict[str, Found]:
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder, Run(Config(seed=SEED), keep=Path(folder)) as run:
        for spec in specs:
            started = time.monotonic()
            result = run.campaign(run.subject(spec), policy=_POLICY)
            violated = ", ".join(dict.fromkeys(failure.property for failure in result.failures))
            found[spec] = (violated, time.monotonic() - started)
            sys.stderr.write(f"{spec}: {violated or 'missed'} in {found[spec][1]:.1f} s\n")
    return found

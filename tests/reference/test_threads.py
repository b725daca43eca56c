"""Threads: how many jax computes on is chosen where nothing has been computed, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COUNT = """
import os, sys
from reference import host
if sys.argv[1] == "before":
    import jax
    jax.local_devices(backend="cpu")
host.start(threads=1)
import jax
jax.local_devices(backend="cpu")
names = []
for task in os.listdir("/proc/self/task"):
    try:
        names.append(open(f"/proc/self/task/{task}/comm").read().strip())
    except (FileNotFoundError, ProcessLookupError):
        pass  # a thread that ended since it was listed
print(sum(name.startswith("tf_XLAEigen") for name in names), os.environ.get("NPROC", "none"))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize(
    ("when", "given", "printed"),
    [("after", None, "1 none"), ("before", None, None), ("after", "2", "2 2")],
)
def test_jax_computes_on_the_threads_asked_for_unless_it_has_begun_or_the_user_chose(when, given, printed):
    environment = {key: value for key, value in os.environ.items() if key != "NPROC"}
    if given:
        environment["NPROC"] = given
    done = subprocess.run(
        [sys.executable, "-c", COUNT, when],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=environment,
    )
    count, left = done.stdout.split()
    if printed is None:
        assert (int(count) > 1, left) == (True, "none")
    else:
        assert done.stdout.strip() == printed

"""The command `doctor`: versions, cores, shared memory, and whether a rank group starts and ends."""

from __future__ import annotations

import sys
import time
from argparse import Namespace

from properties.case import Case
from verify import errors
from verify.environment import backend_words, cores, environment, shared_memory
from verify.errors import RankError, SubjectError
from verify.ranks.pool import RankPool
from verify.record.kept_cases import data_folder

MEGABYTE = 1 << 20


def doctor_command(arguments: Namespace) -> int:
    """Do `python -m verify doctor` and return its exit code: 0 if a rank group works, else 70."""
    backend = backend_words(arguments.device, arguments.backend)
    facts = environment(device=arguments.device, backend=backend)
    for package, version in facts["versions"].items():
        sys.stdout.write(f"{package:<16} {version}\n")
    sys.stdout.write(
        f"{'Python':<16} {facts['python']} on {facts['platform']}\n"
        f"{'cores':<16} {cores()}\n"
        f"{'shared memory':<16} {shared_memory() // MEGABYTE} MB free in /dev/shm\n"
        f"{'kept cases':<16} {data_folder()}\n"
        f"{'ranks on':<16} {arguments.device}, {backend}\n"
    )
    return _try_ranks(arguments)


def _try_ranks(arguments: Namespace) -> int:
    """Start two ranks, run the smallest case on them, and tell how long it took."""
    started = time.monotonic()
    try:
        with RankPool(device=arguments.device, backend=arguments.backend) as pool:
            observation = pool.run("aggregated", Case())
    except (RankError, SubjectError) as error:
        sys.stdout.write(f"{'rank group':<16} FAILED: {error}\n")
        return errors.INTERNAL
    endings = [rank.ending for rank in observation.ranks]
    works = endings == ["returned", "returned"]
    told = "works" if works else f"FAILED: the ranks ended as {', '.join(endings)}"
    sys.stdout.write(f"{'rank group':<16} {told}, in {time.monotonic() - started:.1f} s with its start\n")
    return errors.OK if works else errors.INTERNAL

"""Launchers: programs that start one command as several processes, each of which would judge by itself."""

from __future__ import annotations

from collections.abc import Mapping

_OF_EACH = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def launched(environment: Mapping[str, str]) -> str:
    """Return in one line why this process may not judge; empty if it may.

    torchrun and its like set the rank of each process and the number of them. A batch system alone (SLURM) is
    no reason: it gives one process a whole machine.
    """
    size = environment.get("WORLD_SIZE", "")
    elastic = "TORCHELASTIC_RUN_ID" in environment
    if not size.isdecimal() or int(size) < 2 or not (elastic or all(map(environment.get, _OF_EACH))):
        return ""
    return (
        f"Expected one process, which starts its ranks itself, but got {size} of a launcher like torchrun; "
        "run it without. Ranks that torchrun starts (--launcher torchrun) come in a later version."
    )

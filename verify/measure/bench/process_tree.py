"""The process tree: CPU time and memory of a process and all its descendants, as Linux tells them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
# Fields of /proc/PID/stat after the name in parentheses, counted from the state.
_PARENT, _TIMES = 1, slice(11, 15)


def _stats() -> dict[int, list[str]]:
    found = {}
    for entry in os.listdir(_PROC):  # noqa: PTH208 - ten times a second
        if entry.isdigit():
            with contextlib.suppress(OSError):
                text = (_PROC / entry / "stat").read_text(errors="replace")
                found[int(entry)] = text.rpartition(")")[2].split()
    return found


def _members(root: int, stats: dict[int, list[str]]) -> set[int]:
    members, before = {root}, 0
    while len(members) > before:
        before = len(members)
        members |= {pid for pid, fields in stats.items() if int(fields[_PARENT]) in members}
    return members & stats.keys()


def cpu_seconds(root: int | None = None) -> float:
    """Return user and system CPU seconds of `root` (this process if None) and its descendants, dead ones too.

    A process that has been waited for counts in its parent's `cutime`; so nobody counts twice. Resolution:
    one tick (10 ms) a process.
    """
    stats = _stats()
    members = _members(root or os.getpid(), stats)
    return sum(int(ticks) for pid in members for ticks in stats[pid][_TIMES]) / _TICKS


def shared_bytes(root: int | None = None) -> int:
    """Return the proportional set size, in bytes, of `root` (this process if None) and its descendants.

    A page that k processes map counts 1/k in each (`Pss` of /proc/PID/smaps_rollup).
    """
    return sum(_pss(pid) for pid in _members(root or os.getpid(), _stats()))


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):  # it may be gone by now
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0

"""What tests of real ranks share: a case, and the subjects of this folder."""

from __future__ import annotations

import time
from pathlib import Path

from properties.case import Case

HERE = Path(__file__).parent
CASE = Case(batches=(3, 2), channels=5, spatial=((2, 3),), random_parameters=True, seed=7)


def spec(name: str) -> str:
    return f"{HERE / 'subjects.py'}:{name}"


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def until_gone(*pids: int) -> bool:
    """Wait, bounded, until there are no such processes: a zygote comes to reaping its servers by and by."""
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        if not any(exists(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False

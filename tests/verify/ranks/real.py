"""What tests of real ranks share: a case, and the subjects of this folder."""

from __future__ import annotations

from pathlib import Path

from properties.case import Case

HERE = Path(__file__).parent
CASE = Case(batches=(3, 2), channels=5, spatial=((2, 3),), random_parameters=True, seed=7)


def spec(name: str) -> str:
    return f"{HERE / 'subjects.py'}:{name}"


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()

"""Snapshots of ten reports, as `run` prints them: a reader must find the bug from each.

A report is the same on every machine, so that a snapshot that differs is a change of the report, or a bug.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from tests.messages.reported_subjects import REPORTED

ROOT = Path(__file__).parents[2]


@pytest.mark.costly  # a campaign each
@pytest.mark.parametrize("what", REPORTED)
def test_a_report(what: str, snapshot: SnapshotAssertion, tmp_path: Path) -> None:
    module = f"tests.messages.reported_subjects:{REPORTED[what].__name__}"
    command = [sys.executable, "-m", "verify", "run", "--cases", "200", "--seed", "1", "--subject", module]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    report = done.stdout[done.stdout.index("\nVIOLATED ") :]
    report = re.sub(r'File "[^"]*/site-packages/', 'File "', report).replace(f"{ROOT}/", "")
    assert re.sub(r"\bline \d+", "line N", report) == snapshot

"""Snapshots of ten reports, as `run` prints them: a reader must find the bug from each.

A report is the same on every machine: one that differs from `reports/` is a change of the report, or a bug.
`--snapshot-update` writes them. They are files of their own, since syrupy takes what a run without
`--costly` does not ask for as left over.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.messages.reported_subjects import REPORTED

ROOT = Path(__file__).parents[2]
REPORTS = Path(__file__).with_name("reports")


@pytest.mark.costly  # a campaign each
@pytest.mark.parametrize("what", REPORTED)
def test_a_report(what: str, pytestconfig: pytest.Config, tmp_path: Path) -> None:
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
    report = re.sub(r"\bline \d+", "line N", report).strip() + "\n"
    kept = REPORTS / f"{what.replace(' ', '_')}.txt"
    if pytestconfig.getoption("--snapshot-update"):
        kept.write_text(report, "utf-8")
    assert report == kept.read_text("utf-8")

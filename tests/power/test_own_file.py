"""Subjects of one's own that hang, die or raise: told as what they are, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHAT = {
    "HangsOnEmpty": ("did not end in time", "own_file_subjects.py"),
    "AbortsInBackward": ("died (signal SIGABRT)", "own_file_subjects.py"),
    "RaisesOnOneRank": ("raised RuntimeError", "rank one has had enough"),
}


def processes_with(text: str) -> list[int]:
    """Return the ids of live processes whose environment holds `text`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                held = (folder / "environ").read_bytes()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue  # it ended meanwhile, or is not ours
            if text.encode() in held and state != "Z":
                found.append(int(folder.name))
    return found


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    "name",
    [name if name == "AbortsInBackward" else pytest.param(name, marks=pytest.mark.costly) for name in WHAT],
)
def test_subject_is_reported_as_what_it_is_and_nothing_is_left(name, tmp_path):
    mark = f"syncbn-verify-test-{name}-{os.getpid()}"
    command = [sys.executable, "-m", "verify", "run", "--seed", "1", "--fail-fast", "--properties", "ending"]
    command += ["--subject", f"{ROOT}/tests/power/own_file_subjects.py:{name}"]
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path), "OWN_FILE_MARK": mark}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=140, check=False
    )
    assert done.returncode == 1, done.stderr
    for words in ("VIOLATED ending", *WHAT[name]):
        assert words in done.stdout
    assert processes_with(mark) == []

"""The examples of kernels: right as they are; with a bug planted, the report names the wrong stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.power.planted_kernels import EXAMPLES, PLANTED, Planted

ROOT = Path(__file__).parents[2]
NEEDS = {"cpp_syncbn.py": "ninja", "triton_syncbn.py": "triton"}
CASES = {"cpp_syncbn.py": 200, "triton_syncbn.py": 60}
"""Interpreted kernels take a second a case."""


def run(spec: str, example: str, folder: Path) -> tuple[int, dict]:
    """Return the exit code of a campaign, and what it says of the subject."""
    pytest.importorskip(NEEDS[example])
    found = folder / "found.json"
    command = [sys.executable, "-m", "verify", "run", "--seed", "1", "--cases", str(CASES[example])]
    command += ["--subject", spec, "--json", str(found)]
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]  # of ninja
    environment = os.environ | {
        "XDG_DATA_HOME": str(folder),
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "PATH": os.pathsep.join(places),
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=560, check=False
    )
    assert found.exists(), done.stderr
    return done.returncode, json.loads(found.read_text("utf-8"))["subjects"][0]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.example}-{planted.id}")
def test_what_is_planted_is_another_program(planted: Planted):
    compile(planted.source, planted.id, "exec")
    assert planted.source != (EXAMPLES / planted.example).read_text("utf-8")


@pytest.mark.costly  # each builds an extension, or is interpreted
@pytest.mark.timeout(600)
@pytest.mark.parametrize("example", CASES)
def test_an_example_holds(example, tmp_path):
    code, subject = run(f"{EXAMPLES / example}:SyncBN", example, tmp_path)
    assert (code, subject["failures"]) == (0, [])


@pytest.mark.costly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.example}-{planted.id}")
def test_the_stage_of_a_planted_bug_is_named(planted: Planted, tmp_path):
    place = tmp_path / "planted.py"
    place.write_text(planted.source, "utf-8")
    code, subject = run(f"{place}:SyncBN", planted.example, tmp_path)
    assert code == 1
    assert subject["failures"][0]["stage"] == planted.stage

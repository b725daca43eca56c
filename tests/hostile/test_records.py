"""Records on real ranks: a run that is killed, interrupted or out of disk goes on as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verify import errors
from verify.cli.main import main

SUBJECTS = "--subject local --subject aggregated --cases 8 --seed 5 --fail-fast --properties forward,ending"
DOMAIN = "--domain dtypes=float32 --domain world_sizes=2"
RUN = [*SUBJECTS.split(), *DOMAIN.split()]
PATIENCE = 120.0
"""Seconds after which a program that was to do something is taken to hang."""
FULL_DISK = """
set -e
mount -t tmpfs -o size=8k none "$1"
run="$2 -m verify run --record $1/record"
code=0; $run --subject aggregated --cases 16 --seed 5 --domain world_sizes=1 || code=$?
cp "$1/record/record.jsonl" "$3/full.jsonl"
mount -o remount,size=4m "$1"
again=0; $run --resume --json "$3/resumed.json" || again=$?
cp "$1/record/record.jsonl" "$3/resumed.jsonl"
echo "codes $code $again"
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_VERIFY_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def one_go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the record of the run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNCBN_VERIFY_DATA", str(folder / "data"))
        words = ["run", *RUN, "--record", str(folder), "--json", str(folder / "told.json")]
        assert main(words) == errors.NOT_MET
    return folder


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "verify", "run", *words]


def entries(folder: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a record that is being written."""
    path = folder / "record.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(text) for text in whole.splitlines()]


def drawn(folder: Path, subject: str) -> list[str]:
    return [
        entry["id"]
        for entry in entries(folder)
        if entry["kind"] == "trial" and entry["subject"] == subject and entry["place"]["role"] == "drawn"
    ]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
        time.sleep(0.01)


def told(path: Path) -> list[dict[str, Any]]:
    """Return the subjects of a JSON document, without what is a matter of time."""
    subjects: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["subjects"]
    for subject in subjects:
        del subject["seconds"]
        for part in subject.values():
            if isinstance(part, dict):
                part.pop("case_seconds", None)
                part.pop("compile_seconds", None)
    return subjects


def stop_midway(folder: Path, how: signal.Signals) -> int:
    """Start the run, send it the signal once two cases of the second subject are judged; return its end."""
    with subprocess.Popen(
        program(*RUN, "--record", str(folder)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        try:
            wait_for(lambda: len(drawn(folder, "aggregated")) >= 2, "two cases of the second subject")
            run.send_signal(how)
            return run.wait(PATIENCE)
        finally:
            run.kill()


@pytest.mark.costly
@pytest.mark.parametrize(
    ("how", "end"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, errors.INTERRUPTED)],
    ids=["kill -9", "Ctrl-C"],
)
def test_a_run_that_is_stopped_midway_ends_as_in_one_go(
    how: signal.Signals, end: int, one_go: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "record"
    assert stop_midway(folder, how) == end
    before = {name: drawn(folder, name) for name in ("local", "aggregated")}
    assert 2 <= len(before["aggregated"]) < 8
    with (folder / "record.jsonl").open("ab") as file:
        file.write(b'{"kind":"trial","subj')
    assert main(["run", "--record", str(folder), "--resume", "--json", str(tmp_path / "a")]) == errors.NOT_MET
    said = capsys.readouterr().out
    assert "its 21 bytes are left out" in said
    assert said.count("VIOLATED forward: ") == 1
    assert drawn(folder, "local") == before["local"]
    again = drawn(folder, "aggregated")
    assert again[: len(before["aggregated"])] == before["aggregated"]
    assert len(set(again)) == len(again) == 8
    # The same cases, counts and verdicts.
    assert drawn(one_go, "aggregated") == again
    resumed, whole = told(tmp_path / "a"), told(one_go / "told.json")
    assert resumed[1] == whole[1]
    assert resumed[0]["properties"] == whole[0]["properties"]
    assert [failure["property"] for failure in resumed[0]["failures"]] == ["forward"]


@pytest.mark.costly
def test_a_second_run_on_a_record_is_refused_until_the_first_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "record"
    line = ["--subject", "aggregated", "--cases", "1", "--seed", "5", "--record", str(folder)]
    with subprocess.Popen(
        program(*line, "--seconds", "600", "--cases", "100000"), stdout=subprocess.DEVNULL
    ) as first:
        try:
            wait_for(lambda: bool(drawn(folder, "aggregated")), "the first case")
            for resume in ([], ["--resume"]):
                assert main(["run", *line[:6], "--record", str(folder), *resume]) == errors.USAGE
                said = capsys.readouterr()
                assert said.err.count("\n") == 1
                assert "no other run is writing" in said.err
        finally:
            first.kill()
    # The ranks of a run that was killed may take a moment to end: they must not hold the lock.
    assert main(["run", *line]) == errors.UNDECIDED  # one case


@pytest.mark.costly
@pytest.mark.skipif(
    os.getuid() != 0
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs to mount a small file system",
)
def test_a_full_disk_ends_the_run_with_what_it_judged_and_the_run_goes_on(tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", FULL_DISK, "sh", str(disk), sys.executable, str(out)],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == f"codes {errors.INTERNAL} {errors.UNDECIDED}", (
        done.stdout + done.stderr
    )
    (message,) = (line for line in done.stderr.splitlines() if line)
    assert "could not be written: No space left on device" in message
    assert "stopped before the end of the budget: the record cannot be written" in done.stdout
    full = (out / "full.jsonl").read_bytes()
    assert full.endswith(b"\n")
    judged = [json.loads(text)["kind"] for text in full.splitlines()].count("trial")
    assert 2 <= judged < 16
    resumed = [json.loads(text) for text in (out / "resumed.jsonl").read_bytes().splitlines()]
    ids = [entry["id"] for entry in resumed if entry["kind"] == "trial"]
    assert len(ids) == len(set(ids)) == 16
    assert told(out / "resumed.json")[0]["cases"] == 16

"""Faults of our own machinery: what is killed, interrupted or missing costs no verdict and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import striking

from verify import errors

ROOT = Path(__file__).parents[2]
GONE_SECONDS = 5.0
HANGS = f"{Path(__file__).parent / 'hangs.py'}:Busy"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment whose temporary files and data are below `folder`."""
    ours = {
        "TMPDIR": str(folder / "tmp"),
        "SYNCBN_VERIFY_DATA": str(folder / "data"),
        "PYTHONPATH": str(ROOT),
    }
    (folder / "tmp").mkdir(exist_ok=True)
    return {**os.environ, **ours, **more}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "verify", *words]


RUN = command("run", "--subject", "aggregated", "--cases", "2000", "--seed", "1", "--world-sizes", "2,3")


@contextlib.contextmanager
def started(words: list[str], folder: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a session of its own, and see that it is gone afterwards."""
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment(folder, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: object, seconds: float) -> bool:
    """Wait until `condition()`; return whether it came true within `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() >= limit:
            return False
        time.sleep(0.02)
    return True


def family(pid: int, *, ranks: int) -> dict[int, str]:
    """Return the descendants of `pid` once there are a server and as many ranks."""
    found: dict[int, str] = {}

    def enough() -> bool:
        found.clear()
        found.update(striking.descendants(pid))
        return sum("verify.ranks.server" in words for words in found.values()) >= ranks + 1

    assert wait_for(enough, 60.0), f"no ranks within a minute: {found}"
    return found


def gone(pids: dict[int, str]) -> list[str]:
    """Return which of these processes are still there after `GONE_SECONDS`; zombies are not."""
    wait_for(lambda: not any(map(_runs, pids)), GONE_SECONDS)
    return [f"{pid} {words}" for pid, words in pids.items() if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "seconds",
    [*(pytest.param(seconds, marks=pytest.mark.costly) for seconds in (0.0, 0.7)), 2.5],
    ids="after {} s".format,
)
def test_no_rank_outlives_a_parent_that_is_killed(seconds: float, tmp_path: Path) -> None:
    with started(RUN, tmp_path) as parent:
        time.sleep(seconds)
        found = family(parent.pid, ranks=2)
        parent.kill()
        parent.wait()
        assert gone(found) == []
    assert wait_for(lambda: not list((tmp_path / "tmp").glob("syncbn-verify-*")), GONE_SECONDS)


@pytest.mark.timeout(120)
@pytest.mark.costly
def test_no_rank_outlives_a_parent_that_is_killed_while_they_hang(tmp_path: Path) -> None:
    case = '{"batches":[3,2],"channels":4,"spatial":[[2]],"momentum":0.75}'
    with started(command("replay", case, "--subject", HANGS), tmp_path) as parent:
        found = family(parent.pid, ranks=2)
        time.sleep(1.0)
        parent.kill()
        parent.wait()
        assert gone(found) == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "seconds",
    [pytest.param(seconds, marks=pytest.mark.costly) for seconds in (0.3, 1.0, 1.7, 2.4, 3.3)] + [5.0],
)
@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.costly)])
def test_ctrl_c_at_any_time_ends_with_130_and_leaves_nothing(
    seconds: float, times: int, tmp_path: Path
) -> None:
    with started(RUN, tmp_path) as parent:
        time.sleep(seconds)
        below = striking.descendants(parent.pid)
        for _ in range(times):
            with contextlib.suppress(ProcessLookupError):
                os.kill(parent.pid, signal.SIGINT)
            time.sleep(0.05)
        output, _ = parent.communicate(timeout=140)
        assert parent.returncode in (errors.INTERRUPTED, -signal.SIGINT)
        assert "Traceback" not in output
        below |= striking.descendants(parent.pid)
        assert gone(below) == []
    assert wait_for(lambda: not list((tmp_path / "tmp").glob("syncbn-verify-*")), GONE_SECONDS)


@pytest.mark.timeout(180)
def test_ctrl_c_tells_what_was_judged(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with started([*RUN, "--record", str(record)], tmp_path) as parent:
        lines = record / "record.jsonl"
        judged = lambda: lines.exists() and lines.read_text().count('"kind":"trial"') >= 3  # noqa: E731
        assert wait_for(judged, 90.0)
        os.kill(parent.pid, signal.SIGINT)
        output, _ = parent.communicate(timeout=140)
    assert parent.returncode == errors.INTERRUPTED
    assert "interrupted" in output
    assert "cases" in output.splitlines()[-2] or any("cases" in line for line in output.splitlines()[1:]), (
        output
    )


@pytest.mark.timeout(280)
@pytest.mark.costly
def test_a_lost_worker_of_xdist_costs_its_item_and_leaves_no_rank(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "--subject", "aggregated"]
    with started([*words, "--verify-cases=80", "--verify-seed=1"], tmp_path) as parent:
        found = family(parent.pid, ranks=2)
        parents = {
            pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in found
        }
        servers = [pid for pid, words in found.items() if "verify.ranks.server" in words]
        victim = next(parents[pid] for pid in servers if parents[pid] not in servers)
        orphans = striking.descendants(victim)
        os.kill(victim, signal.SIGKILL)
        assert gone(orphans) == []
        output, _ = parent.communicate(timeout=200)
    assert "crashed" in output
    assert "3 passed" in output
    assert not list((tmp_path / "tmp").glob("syncbn-verify-*"))


def finished(folder: Path, words: list[str], **more: str) -> tuple[int, str]:
    """Run a program to its end; return exit code and output."""
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


FEW = command(
    "run",
    "--subject",
    "aggregated",
    "--cases",
    "3",
    "--min-cases",
    "1",
    "--seed",
    "1",
    "--world-sizes",
    "2,3",
)
FAILING = command("run", "--subject", "local", "--cases", "3", "--seed", "1", "--fail-fast")


@pytest.mark.timeout(240)
@pytest.mark.costly
def test_one_core_is_enough(tmp_path: Path) -> None:
    taskset = shutil.which("taskset")
    if taskset is None:
        pytest.skip("needs taskset")
    code, output = finished(tmp_path, [taskset, "-c", str(min(os.sched_getaffinity(0))), *FEW])
    assert code == errors.OK, output


@pytest.mark.timeout(240)
@pytest.mark.costly
@pytest.mark.parametrize("home", ["", "/proc/none"], ids=["no home", "a home that cannot be written"])
def test_no_home_is_needed(home: str, tmp_path: Path) -> None:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("XDG_") and name != "HOME"
    }
    more = {"HOME": home} if home else {}
    done = subprocess.run(
        FAILING,
        cwd=ROOT,
        env={**kept, **more, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == errors.NOT_MET, done.stdout + done.stderr
    assert "Reproduce with" in done.stdout


@pytest.mark.timeout(240)
@pytest.mark.costly
def test_folders_of_cache_and_data_that_cannot_be_written_cost_nothing(tmp_path: Path) -> None:
    code, output = finished(tmp_path, FAILING, XDG_CACHE_HOME="/proc/none", SYNCBN_VERIFY_DATA="/proc/none")
    assert code == errors.NOT_MET, output
    assert "VIOLATED forward" in output


@pytest.mark.timeout(240)
@pytest.mark.costly
def test_shared_memory_of_a_few_kilobytes_is_enough(tmp_path: Path) -> None:
    mount = "mount -t tmpfs -o size=16k tmpfs /dev/shm && exec "
    unshare = shutil.which("unshare")
    probe = [str(unshare), "-m", "sh", "-c", mount + "true"]
    if unshare is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small /dev/shm (unshare -m)")
    case = '{"batches":[4,4],"channels":8,"spatial":[[256,256]]}'
    words = " ".join(f"'{word}'" for word in command("replay", case, "--subject", "aggregated"))
    code, output = finished(tmp_path, [unshare, "-m", "sh", "-c", mount + words])
    assert code == errors.OK, output


@pytest.mark.timeout(120)
@pytest.mark.costly
def test_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    with started(RUN, tmp_path) as parent:
        found = family(parent.pid, ranks=2)
        seen: set[str] = set()
        limit = time.monotonic() + 3.0
        while time.monotonic() < limit:
            seen |= listening({parent.pid, *found, *striking.descendants(parent.pid)})
            time.sleep(0.05)
    assert seen, "gloo's ranks were to listen on loopback"
    assert all(address in ("0100007F", "00000000000000000000000001000000") for address in seen), seen


def listening(pids: set[int]) -> set[str]:
    """Return the local addresses, as the kernel writes them, on which these processes listen."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    addresses = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (fields[3] == "0A" or table.startswith("udp")):
                addresses.add(fields[1].partition(":")[0])
    return addresses

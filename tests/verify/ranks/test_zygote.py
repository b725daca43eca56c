"""A zygote saves time, and nothing depends on it: its servers do what one's own does, whatever it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from properties.case import Case
from tests.verify.ranks.real import until_gone
from verify.ranks import zygote
from verify.ranks.messages import CountDevices
from verify.ranks.pool import RankPool
from verify.ranks.server_client import ServerClient
from verify.ranks.zygote import VARIABLE, Zygote

HERE = Path(__file__).parent
CASE = Case(batches=(3, 2))


@pytest.fixture(scope="module")
def one() -> Iterator[Zygote]:
    """A zygote of this module's own, in place of that of all tests."""
    before = os.environ.pop(VARIABLE, None)
    with Zygote() as made:
        yield made
    if before is not None:
        os.environ[VARIABLE] = before


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_servers_of_several_parents_come_from_one_process_and_run_cases(one: Zygote) -> None:
    with RankPool() as first, RankPool() as second:
        for pool in (first, second):
            seen = pool.run("local", CASE)
            assert [rank.ending for rank in seen.ranks] == ["returned", "returned"]
            assert pool.groups.client is not None
            assert parent_of(pool.groups.client._process.pid) == one.pid
        assert first.groups.client is not None
        server, folder = first.groups.client._process.pid, first.groups.client.folder
        first.close()
        assert until_gone(server)
        assert not folder.exists()
        assert second.run("local", CASE).ranks[0].ending == "returned"


def test_ranks_have_variables_and_folder_of_the_parent(
    one: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAID_BY_THE_PARENT", "yes")
    Path("mine.py").write_text(
        "import os\nfrom verify.subjects.local import Local\n"
        "assert os.environ['SAID_BY_THE_PARENT'] == 'yes'\n"
        f"assert os.getcwd() == {str(tmp_path)!r}\n"
    )
    with RankPool() as pool:
        assert pool.run("./mine.py:Local", CASE).ranks[0].ending == "returned"
        assert pool.groups.client is not None
        assert parent_of(pool.groups.client._process.pid) == one.pid


@pytest.mark.parametrize("name", ["PYTHONPATH", "OMP_NUM_THREADS", "TRITON_INTERPRET"])
def test_what_would_start_otherwise_starts_its_own(
    one: Zygote, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert zygote.found() is not None
    monkeypatch.setenv(name, "7")
    assert zygote.found() is None
    with ServerClient() as client:
        assert parent_of(client._process.pid) == os.getpid()


def test_a_variable_that_is_no_text_starts_its_own(one: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_TEXT", os.fsdecode(b"\xff"))
    with ServerClient() as client:
        assert parent_of(client._process.pid) == os.getpid()


@pytest.mark.parametrize("asked", [False, True], ids=["before it is asked", "while it imports"])
def test_without_its_zygote_a_parent_starts_a_server(asked: bool) -> None:
    before = os.environ.pop(VARIABLE, None)
    try:
        with Zygote() as made:
            if not asked:
                os.kill(made.pid, signal.SIGKILL)
                assert made._process.wait(10)
            client = ServerClient()
            if asked:
                os.kill(made.pid, signal.SIGKILL)
            with client:
                assert client.request(CountDevices())
                assert parent_of(client._process.pid) == os.getpid()
    finally:
        if before is not None:
            os.environ[VARIABLE] = before


def test_a_client_that_nobody_asks_anything_leaves_nothing(one: Zygote) -> None:
    client = ServerClient()
    client.close()
    assert not client.folder.exists()
    assert not client.alive


_OWNER = """
import os, sys, time
from verify.ranks.zygote import Zygote
from verify.ranks.server_client import ServerClient
from verify.ranks.messages import CountDevices
zygote = Zygote().__enter__()
client = ServerClient()
if sys.argv[1] == "forked":
    client.request(CountDevices())
    print(zygote.pid, client._process.pid, flush=True)
else:
    print(zygote.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("when", ["importing", "forked"])
def test_it_ends_with_its_owner_however_that_ends(when: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, when],
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != VARIABLE},
    ) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert pids
        owner.kill()
    assert until_gone(*pids)

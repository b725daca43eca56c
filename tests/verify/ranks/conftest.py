"""A pool of real ranks for the tests of a module, and the groups that it has lost in this one."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from verify.ranks.pool import RankPool

GATE = "TEST_GATE"
"""The variable that tells ranks the folder; servers take it over from this process."""
os.environ[GATE] = str(Path(tempfile.gettempdir()) / f"syncbn-verify-gate-{os.getpid()}")


@pytest.fixture(scope="module")
def losses():
    return []


@pytest.fixture(scope="module")
def pool(losses):
    with RankPool(timeout=2.0, warm_up=0.0, on_lost=losses.append) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _forget_losses(losses):
    losses.clear()


class Gate:
    """A folder in which the subject `Waits` leaves a mark a forward, and waits for the gate to be opened."""

    def __init__(self):
        self.folder = Path(os.environ[GATE])
        self.folder.mkdir()

    def open(self):
        (self.folder / "open").touch()

    def wait_for(self, forwards, *, ranks):
        """Wait until each of `ranks` processes has begun so many forwards; the limit only bounds a hang."""
        limit = time.monotonic() + 100
        while time.monotonic() < limit:
            begun = Counter(file.name.partition("-")[0] for file in self.folder.glob("*-*"))
            if len(begun) == ranks and min(begun.values()) == forwards:
                return
            time.sleep(0.01)
        pytest.fail(f"waited for {forwards} forwards on {ranks} ranks, but there were {begun}")


@pytest.fixture
def gate(pool):
    """A closed gate; cases get as much time as it takes to open it."""
    usual, pool.timeout = pool.timeout, 100.0
    gate = Gate()
    yield gate
    shutil.rmtree(gate.folder)
    pool.timeout = usual

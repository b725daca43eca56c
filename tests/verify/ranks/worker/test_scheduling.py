"""Ranks are batch processes, all their threads, and as any others while bare steps are timed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from verify.ranks.worker.scheduling import BATCH, USUAL, use_policy

SCRIPT = """
import os, threading
from verify.ranks.worker.scheduling import BATCH, USUAL, use_policy

def policies():
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}

held = threading.Event()
threading.Thread(target=held.wait, daemon=True).start()
for policy in (BATCH, USUAL, BATCH):
    use_policy(policy)
    threading.Thread(target=held.wait, daemon=True).start()
    assert policies() == {policy}, (policies(), policy)
"""


def test_all_threads_change_and_later_ones_follow() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


def test_a_policy_that_the_system_does_not_have_or_allow_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = os.sched_getscheduler(0)
    use_policy(None)

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    use_policy(BATCH)
    monkeypatch.delattr(os, "sched_setscheduler")
    use_policy(USUAL)
    assert os.sched_getscheduler(0) == before

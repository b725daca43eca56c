"""Conformance of a transport: what every group of ranks must do, wherever they are.

Parametrised by how a group is opened, so that another implementation is one more line of `OPENERS`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from properties.case import Case, Step
from properties.values.elements import digest, tensors
from verify.ranks.group import RankGroup
from verify.ranks.messages import Target
from verify.ranks.placement import plan
from verify.ranks.server_client import ServerClient

SUBJECTS = Path(__file__).parents[1] / "verify" / "ranks" / "subjects.py"
CASE = Case(batches=(3, 2), channels=5, spatial=((2, 3),), random_parameters=True, seed=7)
Opener = Callable[[str, int], AbstractContextManager[RankGroup]]


@contextlib.contextmanager
def on_this_machine(name: str, world_size: int) -> Iterator[RankGroup]:
    """Open a group of forked ranks with sockets and memory files."""
    link = ServerClient()
    try:
        target = Target(spec=name, attribute=name, file=str(SUBJECTS))
        where = plan(device="cpu", backend=None, world_size=world_size, cuda_devices=0)
        group = RankGroup(link, where, target, folder=link.folder / "group")
        try:
            yield group
        finally:
            group.close()
    finally:
        link.close()


OPENERS: tuple[Opener, ...] = (on_this_machine,)
every_transport = pytest.mark.parametrize("opened", OPENERS, ids=lambda one: one.__name__)


@every_transport
def test_it_describes_its_subject_and_runs_cases_in_order_on_all_ranks(opened: Opener) -> None:
    with opened("Synced", 2) as group:
        assert group.describe().name == "subjects.py:Synced"
        for seed in range(20):
            case = msgspec.structs.replace(CASE, seed=seed, steps=(Step(), Step(mode="eval")))
            group.submit(case, seconds=10.0)
            seen = group.observation()
            assert [rank.ending for rank in seen.ranks] == ["returned", "returned"]
            for rank in seen.ranks:
                drawn = [array for step in (0, 1) for array in tensors(case, rank.rank, step=step)]
                assert rank.digest == digest(*drawn)
                assert [entry.op for entry in rank.ledger] == ["all_reduce"] * 4


@every_transport
def test_submitting_returns_at_once_and_an_ending_is_told_without_waiting(opened: Opener) -> None:
    with opened("Sleeps", 2) as group:
        group.describe()
        started = time.thread_time()
        group.submit(CASE, seconds=10.0)
        assert group.ending(0) is None
        assert time.thread_time() - started < 0.2
        seen = group.observation()
    assert [rank.ending for rank in seen.ranks] == ["returned", "returned"]


@every_transport
@pytest.mark.parametrize(
    ("name", "endings"),
    [
        ("HangsWithTheGil", ("timeout", "timeout")),
        ("AbortsInBackward", ("died", "stopped")),
        ("RaisesOnRankOne", ("stopped", "raised")),
    ],
)
def test_a_wait_is_bounded_however_a_rank_ends(opened: Opener, name: str, endings: tuple[str, str]) -> None:
    with opened(name, 2) as group:
        group.describe()
        group.submit(CASE, seconds=1.0)
        assert tuple(rank.ending for rank in group.observation().ranks) == endings

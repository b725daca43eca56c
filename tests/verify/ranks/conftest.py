"""A pool of real ranks for the tests of a module, and the groups that it has lost in this one."""

from __future__ import annotations

import pytest

from verify.ranks.pool import RankPool


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

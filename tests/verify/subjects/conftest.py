"""A pool of real ranks for the subjects that are built in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from verify.ranks.pool import RankPool


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    with RankPool() as ranks:
        yield ranks

"""Bare steps on real ranks: timed in a loop of their own, beside cases that run as ever."""

from __future__ import annotations

import pytest

from properties.case import Case, Step
from verify.errors import RankError
from verify.ranks.pool import RankPool

CASES = (
    Case(),
    Case(
        batches=(3, 1), channels=3, spatial=((2, 2),), steps=(Step(backward="deferred"), Step(recompute=True))
    ),
    Case(
        batches=(1, 4), groups=((0,), (1,)), spatial=((5,),), steps=(Step(mode="eval"), Step(backward="none"))
    ),
)


def test_each_rank_times_each_case_and_the_group_goes_on() -> None:
    with RankPool() as pool:
        timed = pool.bare("aggregated", CASES)
        assert [len(rank.seconds) for rank in timed] == [3, 3]
        assert all(second > 0 for rank in timed for second in rank.seconds)
        assert all(rank.cpu > 0 for rank in timed)
        assert [rank.ending for rank in pool.run("aggregated", CASES[1]).ranks] == ["returned", "returned"]


def test_time_grows_with_the_work() -> None:
    small, large = Case(), Case(batches=(64, 64), channels=64, spatial=((32, 32),))
    with RankPool() as pool:
        pool.bare("aggregated", [small, large])  # the first call of anything is slow
        first, second = zip(*(rank.seconds for rank in pool.bare("aggregated", [small, large])), strict=True)
    assert min(second) > 3 * min(first)


def test_a_subject_that_raises_costs_the_group_and_no_more() -> None:
    with RankPool() as pool:
        with pytest.raises(RankError, match="Expected rank 0 to time bare steps, but ValueError"):
            pool.bare("aggregated", [Case(batches=(1, 0))])
        assert len(pool.bare("aggregated", [Case()])) == 2

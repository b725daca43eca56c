"""Blocks: which cases count."""

from __future__ import annotations

from pathlib import Path

from properties.case import Case
from tests.verify.fakes import returned
from verify.events import GroupLost
from verify.measure.bench.timed_campaign import Watch
from verify.trial import Trial


def test_what_loses_a_group_and_the_case_that_waits_for_the_next_one_do_not_count(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    cases = [Case(batches=(1, 1), seed=seed) for seed in range(5)]
    for case in cases:
        if case.seed == 1:  # told while the ranks' answer is taken, so before the trial is kept
            watch.handle(GroupLost(subject="any", world_size=2, reason="died"))
        watch.keep(Trial(case=case, observation=returned(case)))
    block = watch.block()
    watch.close()
    assert block.cases == (cases[0], cases[3], cases[4])
    assert block.left_out == 2

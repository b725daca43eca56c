"""Every hostile subject in the middle of a run: the right ending and verdict, and nothing leaks out of it."""

from __future__ import annotations

from collections.abc import Iterator

import catalogue
import pytest
import striking
from catalogue import ENTRIES, STAYS, Entry

from properties.observation import Observation


@pytest.fixture(scope="module")
def shooting_range() -> Iterator[striking.Range]:
    with striking.opened() as opened:
        yield opened


def parameters() -> list[object]:
    marks = {True: [pytest.mark.costly], False: []}
    return [pytest.param(entry, id=entry.id, marks=marks[entry.costly]) for entry in ENTRIES]


def bits(observation: Observation) -> list[dict[str, bytes]]:
    return [{name: one.array.tobytes() for name, one in seen.tensors.items()} for seen in observation.ranks]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("entry", parameters())
def test_a_hostile_subject_is_told_and_the_next_cases_are_judged_rightly(
    shooting_range: striking.Range, entry: Entry
) -> None:
    strike = shooting_range.strike(entry)
    struck = strike.struck
    assert not struck.internal
    assert struck.observation is not None
    ranks = struck.observation.ranks
    for seen, wanted in zip(ranks, entry.endings, strict=True):
        assert seen.ending in wanted.split("|"), striking.told(seen)
    assert struck.violated == entry.violated
    assert struck.outcome.name == ("VIOLATED" if entry.violated else "HOLDS")
    assert any(entry.tells in striking.told(seen) for seen in ranks)
    if entry.ledger:
        silent = [seen for seen in ranks if seen.ending in ("timeout", "died", "stopped")]
        assert entry.ledger in {seen.ledger[-1].op for seen in silent if seen.ledger}
    assert len(strike.lost) == (entry.groups if entry.lost != STAYS else 0), strike.lost
    assert all(entry.lost in group.reason for group in strike.lost)
    for trial in (strike.before, strike.right, strike.after):
        assert trial.outcome.name == "HOLDS", (trial.violated, trial.internal, trial.observation)
    assert strike.lost_after == ()
    assert bits(strike.after.observation) == bits(strike.before.observation)
    if strike.lost:
        below = striking.descendants(shooting_range.server)
        assert not any(command.startswith("sleep ") for command in below.values())


def test_the_catalogue_has_every_hostile_subject_once() -> None:
    ids = [entry.id for entry in ENTRIES]
    assert len(set(ids)) == len(ids)
    assert set(ids) == catalogue.subjects_written()
    assert all(entry.does for entry in ENTRIES)


def test_a_subject_that_sees_its_process_changed_says_so(shooting_range: striking.Range) -> None:
    examiner = shooting_range.run.examiner(shooting_range.run.subject(ENTRIES[0].spec))
    assert examiner.examine(catalogue.HARMLESS).outcome.name == "HOLDS"
    seed = catalogue.HARMLESS.seed + 1
    other = catalogue.Case(batches=(3, 2), channels=4, spatial=((2,),), seed=seed)
    assert "random" in str(examiner.examine(other).observation)


@pytest.mark.costly
def test_processes_that_a_rank_has_disowned_go_when_the_next_group_does(
    shooting_range: striking.Range,
) -> None:
    by_id = {entry.id: entry for entry in ENTRIES}
    shooting_range.strike(by_id["leftovers.Orphans"])
    sleeping = [c for c in striking.descendants(shooting_range.server).values() if c.startswith("sleep ")]
    assert len(sleeping) == 100, "50 for each rank"
    shooting_range.strike(by_id["deaths.ExitsAtOnce"])
    below = striking.descendants(shooting_range.server)
    assert not any(command.startswith("sleep ") for command in below.values())
    ranks = {pid for group in shooting_range.run.pool.groups.open.values() for pid in group.pids}
    assert set(below) == ranks

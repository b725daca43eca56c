"""Ledgers in words: contributions, summaries, and where two ranks part."""

from __future__ import annotations

import pytest

from properties.case import Case
from properties.observation import Collective, Observation, RankObservation
from verify.report.ledger_words import first_mismatch, spoken, summary

CASE = Case(batches=(2, 2))


def entry(op: str, dtype: str = "float32", size: int = 7, **more: object) -> Collective:
    fields = {
        "op": op,
        "phase": "forward 0",
        "group": (0, 1),
        "dtypes": (dtype,),
        "shapes": ((size,),),
        "bytes": 28,
    }
    return Collective(**{**fields, **more})  # type: ignore[arg-type]


def seen(*ledgers: tuple[Collective, ...], endings: str = "rr") -> Observation:
    names = {"r": "returned", "d": "died"}
    return Observation(
        ranks=tuple(
            RankObservation(rank=rank, ending=names[ending], ledger=ledger)  # type: ignore[arg-type]
            for rank, (ledger, ending) in enumerate(zip(ledgers, endings, strict=True))
        )
    )


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ("allreduce_", "all-reduces 7 x float32"),
        ("all_gather_into_tensor", "all-gathers 7 x float32"),
        ("_allgather_base_", "all-gathers 7 x float32"),
        ("mystery", "calls mystery with 7 x float32"),
    ],
)
def test_a_collective_is_a_predicate(op: str, words: str) -> None:
    assert spoken(entry(op)) == words


def test_a_summary_counts_operations_and_bytes() -> None:
    ledger = (entry("allreduce_"), entry("allreduce_"), entry("allgather_"))
    assert summary(ledger) == "3 collectives (2 x allreduce_, allgather_), 84 bytes"
    assert summary(()) == "no collective"


def test_equal_ledgers_do_not_part() -> None:
    assert first_mismatch(CASE, seen((entry("allreduce_"),), (entry("allreduce_"),))) == ""


def test_the_first_difference_is_told() -> None:
    one, other = (
        (entry("allgather_"), entry("allreduce_")),
        (entry("allgather_", "float16"), entry("barrier")),
    )
    assert first_mismatch(CASE, seen(one, other)) == (
        "collective 0, forward 0: rank 1 all-gathers 7 x float16, rank 0 all-gathers 7 x float32"
    )


def test_a_collective_that_one_rank_never_issues_is_told() -> None:
    assert first_mismatch(CASE, seen((entry("allreduce_"),), ())) == (
        "collective 0, forward 0: rank 0 all-reduces 7 x float32, rank 1 issues none"
    )


def test_the_shorter_ledger_of_a_rank_that_died_is_no_mismatch() -> None:
    assert first_mismatch(CASE, seen((entry("allreduce_"),), (), endings="rd")) == ""


def test_ranks_of_different_groups_need_not_match() -> None:
    apart = Case(batches=(2, 2), groups=((0,), (1,)))
    assert (
        first_mismatch(apart, seen((entry("allreduce_", group=(0,)),), (entry("allgather_", group=(1,)),)))
        == ""
    )


def test_send_and_receive_are_not_compared() -> None:
    assert (
        first_mismatch(
            CASE, seen((entry("send"), entry("allreduce_")), (entry("recv_"), entry("allreduce_")))
        )
        == ""
    )

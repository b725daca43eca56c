"""Agreement of collectives: what right ranks issue differently is no parting, for nobody who asks."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from properties.case import Case
from properties.diagnosis.symptoms import SYMPTOMS
from properties.judge.collective_agreement import parting
from properties.observation import Collective, Ending, Observation, RankObservation
from verify.report.ledger_words import first_mismatch

(MISMATCHED,) = (symptom for symptom in SYMPTOMS if symptom.id == "mismatched-collectives")


@dataclass
class Seen:
    """What a symptom looks at."""

    case: Case
    observation: Observation
    violated: tuple[str, ...] = ("ending",)
    minimal: bool = True
    facts: dict[str, str] = field(default_factory=dict)


def entry(op: str, size: int = 7, dtype: str = "float32", **more: object) -> Collective:
    fields = {"phase": "forward 0", "group": (0, 1), "dtypes": (dtype,), "shapes": ((size,),)}
    return Collective(op=op, **{**fields, **more})  # type: ignore[arg-type]


REDUCE = entry("all_reduce")
ALIKE = {
    "one sends and the other receives": ((entry("send"), REDUCE), (entry("recv"), REDUCE)),
    "one sends more often than the other receives": ((entry("send"),) * 2, (entry("recv"),)),
    "they gather unequal sizes": ((entry("all_gather", 3),), (entry("all_gather", 5),)),
    "the root alone scatters": (
        (entry("scatter", dtypes=("float32",) * 2),),
        (entry("scatter", dtypes=(), shapes=()),),
    ),
    "shapes of as many elements": (
        (entry("all_reduce", shapes=((14,),)),),
        (entry("all_reduce", shapes=((2, 7),)),),
    ),
}
APART = {
    "another operation": ((REDUCE,), (entry("broadcast"),)),
    "another dtype": ((REDUCE,), (entry("all_reduce", dtype="float64"),)),
    "another size where all contribute alike": ((REDUCE,), (entry("all_reduce", 8),)),
    "one fewer": ((REDUCE, REDUCE), (REDUCE,)),
    "another dtype after a send": (
        (entry("send"), REDUCE),
        (entry("recv"), entry("all_reduce", dtype="int64")),
    ),
}


def seen(ledgers: tuple[tuple[Collective, ...], ...], *endings: Ending) -> Seen:
    ranks = tuple(
        RankObservation(rank=rank, ending=ending, ledger=ledger)
        for rank, (ledger, ending) in enumerate(zip(ledgers, endings, strict=True))
    )
    return Seen(case=Case(batches=(2, 2)), observation=Observation(ranks=ranks))


@pytest.mark.parametrize("name", [*ALIKE, *APART])
def test_the_diagnosis_and_the_message_see_what_the_property_sees(name: str) -> None:
    found = seen({**ALIKE, **APART}[name], "returned", "returned")
    apart = parting(*found.observation.ranks) is not None
    assert apart is (name in APART)
    assert MISMATCHED.needs(found) is apart
    assert bool(first_mismatch(found.case, found.observation)) is apart


def test_a_rank_that_failed_issues_no_fewer_than_it_had_come_to() -> None:
    ledgers = ((REDUCE, REDUCE), (REDUCE,))
    assert parting(*seen(ledgers, "returned", "died").observation.ranks) is None
    assert parting(*seen(ledgers, "timeout", "returned").observation.ranks) is not None
    assert parting(*seen(((REDUCE,), (entry("broadcast"),)), "died", "died").observation.ranks) is not None


def test_ranks_of_other_groups_are_not_compared() -> None:
    found = seen(((REDUCE,), ()), "returned", "returned")
    found.case = Case(batches=(2, 2), groups=((0,), (1,)))
    assert not MISMATCHED.needs(found)
    assert first_mismatch(found.case, found.observation) == ""

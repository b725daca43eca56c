"""Property `num_batches_tracked`: the count of training forwards is exact after every step."""

from __future__ import annotations

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.completion import INCOMPLETE, complete_ranks, failed_ranks
from properties.judge.property import COMPLETE, Property
from properties.observation import Observation, RankObservation
from properties.verdict import Discrepancy, Verdict, holds, undecided, violated

_COUNT = "num_batches_tracked"


def num_batches_tracked(
    case: Case, observation: Observation, expected: Expected, contract: Contract
) -> Verdict | None:
    """Return whether the count of training forwards is exact after every step."""
    del contract
    if not case.counter:
        return None
    ranks = complete_ranks(case, observation, expected)
    wrong: dict[str, list[tuple[int, str, str]]] = {}
    facts = 0
    for rank in ranks:
        seen = observation.ranks[rank]
        names = {name for name in seen.tensors if name.startswith(_COUNT + ".")}
        for name in sorted(names | {name for name, by in expected.tracked.items() if rank in by}):
            facts += 1
            want = expected.tracked.get(name, {}).get(rank)
            observed, asked = _count(seen, name), "absent" if want is None else str(want)
            if observed != asked:
                wrong.setdefault(name, []).append((rank, observed, asked))
    if wrong:
        found = [_discrepancy(name, entries) for name, entries in wrong.items()]
        return violated(_COUNT, found, elements=facts)
    if facts:
        return holds(_COUNT, elements=facts)
    awaited = expected.tracked and failed_ranks(observation, expected)
    return undecided(_COUNT, INCOMPLETE) if awaited else None


def _count(seen: RankObservation, name: str) -> str:
    tensor = seen.tensors.get(name)
    if tensor is None:
        return "absent"
    return str(tensor.array.item()) if tensor.array.size == 1 else f"shape {tensor.shape}"


def _discrepancy(name: str, entries: list[tuple[int, str, str]]) -> Discrepancy:
    rank, observed, asked = entries[0]
    return Discrepancy(
        quantity=name,
        rank=rank,
        observed=observed,
        expected=asked,
        mismatched=len(entries),
        elements=len(entries),
        mismatched_ranks=tuple(entry[0] for entry in entries),
        message=f"{name} is {observed} on rank {rank}, but must be {asked}.",
    )


NUM_BATCHES_TRACKED = Property(
    id="num_batches_tracked",
    judge=num_batches_tracked,
    holds="The count of training batches is exact after every step.",
    violation="the count of training batches is not what it must be",
    must="each training step must add exactly 1, and nothing else must.",
    quantities="`num_batches_tracked.STEP`, `num_batches_tracked.end`",
    not_judged="Without running buffers, and where the domain says `counter=no`. " + COMPLETE,
)

"""Ledgers in words: what a rank communicated, and where two ranks part."""

from __future__ import annotations

import math
from collections import Counter

from properties.observation import Collective, Observation
from verify.report.words import count

_POINT_TO_POINT = ("send", "recv")
_VERBS = {
    "allreduce": "all-reduces",
    "allgather": "all-gathers",
    "broadcast": "broadcasts",
    "reducescatter": "reduce-scatters",
    "alltoall": "all-to-alls",
    "barrier": "waits at a barrier",
    "reduce": "reduces",
    "gather": "gathers",
    "scatter": "scatters",
}


def contribution(entry: Collective) -> str:
    """Return what a rank contributes: "7 x float16"."""
    parts = [
        f"{math.prod(shape)} x {dtype}" for shape, dtype in zip(entry.shapes, entry.dtypes, strict=False)
    ]
    return " and ".join(dict.fromkeys(parts))


def spoken(entry: Collective) -> str:
    """Return a collective as a predicate: "all-gathers 7 x float16"."""
    plain = entry.op.replace("_", "")
    verb = next((words for name, words in _VERBS.items() if plain.startswith(name)), f"calls {entry.op} with")
    return f"{verb} {contribution(entry)}".rstrip()


def summary(ledger: tuple[Collective, ...]) -> str:
    """Return a ledger in a few words: "2 collectives (allgather, allreduce), 56 bytes"."""
    if not ledger:
        return "no collective"
    ops = Counter(entry.op for entry in ledger)
    names = ", ".join(f"{n} x {op}" if n > 1 else op for op, n in ops.items())
    return f"{count(len(ledger), 'collective')} ({names}), {sum(entry.bytes for entry in ledger)} bytes"


def first_mismatch(observation: Observation) -> str:
    """Return where the collectives of two ranks of a group first part, or nothing.

    A ledger that is merely shorter than another is a mismatch only if its rank did not fail.
    """
    sequences = {
        rank.rank: [entry for entry in rank.ledger if not entry.op.strip("_").startswith(_POINT_TO_POINT)]
        for rank in observation.ranks
    }
    ended = {rank.rank: rank.ending == "returned" for rank in observation.ranks}
    for first, mine in sequences.items():
        for rank, theirs in sequences.items():
            if rank <= first:
                continue
            if text := _parting((first, mine), (rank, theirs), ended=ended):
                return text
    return ""


def _parting(
    one: tuple[int, list[Collective]], other: tuple[int, list[Collective]], *, ended: dict[int, bool]
) -> str:
    (first, mine), (rank, theirs) = one, other
    for position, (a, b) in enumerate(zip(mine, theirs, strict=False)):
        if a.group != b.group:
            return ""  # not peers: their collectives need not match
        if (a.op, a.dtypes, a.shapes, a.reduction) != (b.op, b.dtypes, b.shapes, b.reduction):
            where = f"collective {position}, {b.phase}"
            return f"{where}: rank {rank} {spoken(b)}, rank {first} {spoken(a)}"
    if len(mine) == len(theirs):
        return ""
    longer, shorter = (one, other) if len(mine) > len(theirs) else (other, one)
    if not ended[shorter[0]]:
        return ""
    entry = longer[1][len(shorter[1])]
    where = f"collective {len(shorter[1])}, {entry.phase}"
    return f"{where}: rank {longer[0]} {spoken(entry)}, rank {shorter[0]} issues none"

"""Ledgers in words: what a rank communicated, and where two ranks part."""

from __future__ import annotations

import math
from collections import Counter

from properties.case import Case
from properties.judge.collective_agreement import Parting, parting
from properties.observation import Collective, Observation
from verify.report.words import count

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


def first_mismatch(case: Case, observation: Observation) -> str:
    """Return where the collectives of two ranks of a group first part, or nothing."""
    for group in case.process_groups:
        for rank in group[1:]:
            parted = parting(observation.ranks[group[0]], observation.ranks[rank])
            if parted is not None:
                return _parting_words(parted, group[0], rank)
    return ""


def _parting_words(parted: Parting, first: int, rank: int) -> str:
    speakers = [(rank, parted.second), (first, parted.first)]
    speakers.sort(key=lambda speaker: speaker[1] is None)  # who issues none comes last
    (_, entry), *_ = speakers
    words = (f"rank {who} {spoken(issued) if issued else 'issues none'}" for who, issued in speakers)
    return f"collective {parted.position}, {entry.phase if entry else ''}: {', '.join(words)}"

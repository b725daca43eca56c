"""Whether two ranks communicate alike: the one comparison that the property, the diagnosis and messages use.

Rules
-----
- Ranks of a group issue the same collectives in the same order: operation, reduction, dtypes, and, where
  every rank contributes alike, sizes. Send and receive are recorded, not compared.
- Rooted and uneven operations (broadcast, gather, all_to_all, a list all_gather) may differ in size by rank;
  of those only operation, reduction and the kinds of dtypes are compared. What is scattered is the root's
  alone: the other ranks of a scatter contribute nothing, whose dtype could be compared.
- A ledger that is merely shorter than the other says nothing where its rank did not come to its end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from properties.observation import Collective, RankObservation

_UNIFORM = ("allreduce", "reducescatterbase", "reducescattertensor", "allgatherbase", "allgatherintotensor")


class Parting(NamedTuple):
    """Where two ranks part.

    Attributes:
        position: The number of the collective, send and receive not counted.
        first, second: What each of them issues there; None for nothing.
    """

    position: int
    first: Collective | None
    second: Collective | None


def parting(first: RankObservation, second: RankObservation) -> Parting | None:
    """Return where two ranks of a group communicate differently; None if they do alike."""
    left, right = (
        [entry for entry in seen.ledger if not entry.is_point_to_point] for seen in (first, second)
    )
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if not alike(a, b):
            return Parting(position, a, b)
    position = min(len(left), len(right))
    shorter = first if len(left) < len(right) else second
    if len(left) == len(right) or shorter.ending != "returned":
        return None
    return Parting(
        position, *(ledger[position] if position < len(ledger) else None for ledger in (left, right))
    )


def alike(a: Collective, b: Collective) -> bool:
    """Return whether two ranks may issue these as one collective."""
    if a.op == b.op == "scatter" and not (a.dtypes and b.dtypes):  # one of them is not the root
        return (a.group, a.reduction) == (b.group, b.reduction)
    return _key(a) == _key(b)


def _key(entry: Collective) -> tuple[object, ...]:
    plain = entry.op.replace("_", "")
    kind = (plain, entry.group, entry.reduction, frozenset(entry.dtypes))
    if plain.startswith(_UNIFORM):
        return (*kind, tuple(math.prod(shape) for shape in entry.shapes))
    return kind

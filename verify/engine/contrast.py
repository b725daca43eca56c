"""Contrast: changes of a smallest case with which it holds.

Minimising takes away whatever a failure can do without, and leaves the defaults: what they hide is not seen
in a case that has nothing else. So each of a few defaults is moved once. A failure that holds in float64, or
with equal batches, says where to look; one that fails with everything says that it is none of these. What
holds does so with other values, too: a few values that are rounded otherwise are right by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from properties.case import Case
from properties.case_checks import CaseError

_SEEDS = 3
"""With so many a change must hold."""


def contrasts(case: Case, holds: Callable[[Case], bool]) -> tuple[str, ...]:
    """Return the changes, in words, with which `case` holds.

    Args:
        case: A smallest case, which fails.
        holds: Runs a case; whether it is judged, and holds.
    """
    found = []
    for words, changes in _moves(case):
        try:
            moved = msgspec.structs.replace(case, **changes)
        except CaseError:
            continue
        if moved != case and all(
            holds(msgspec.structs.replace(moved, seed=(case.seed + k) % 2**64)) for k in range(_SEEDS)
        ):
            found.append(words)
    return tuple(found)


def _moves(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is moved away from the default, as a report says it."""
    if len(set(case.batches)) > 1:
        yield "with equal batches", {"batches": (max(case.batches),) * case.world_size}
    elif case.world_size > 1:
        yield "with uneven batches", {"batches": (case.batches[0] + 1, *case.batches[1:])}
    yield "with 5 more samples on each rank", {"batches": tuple(n + 5 for n in case.batches)}
    yield "with 3 more channels", {"channels": case.channels + 3}
    if case.spatial == ((),):
        yield "with spatial sizes (2, 3)", {"spatial": ((2, 3),)}
    for dtype in ("float32", "float64"):
        if dtype != case.dtype:
            yield f"in {dtype}", {"dtype": dtype, "param_dtype": dtype}
    if not case.random_parameters:
        yield "with random parameters and buffers", {"random_parameters": True}
    if not case.rank_offset and case.world_size > 1:
        yield "with ranks whose means are apart", {"rank_offset": 16}
    if case.eps != 1.0:
        yield "with eps=1", {"eps": 1.0}
    if case.momentum not in (None, 0.5):
        yield "with momentum=0.5", {"momentum": 0.5}
    if case.steps[0].mode == "train":
        evaluated = msgspec.structs.replace(case.steps[0], mode="eval")
        yield (
            "as an evaluation" if len(case.steps) == 1 else "with its first step an evaluation",
            {"steps": (evaluated, *case.steps[1:])},
        )

"""Simplifying: cases that are simpler than a given one in a single respect, for a greedy descent.

Hypothesis shrinks the choices a case was drawn by; what a draw derives from the seed it cannot shrink one by
one. These candidates change the case itself. A candidate that is no possible case is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from properties.case import Case, Step, encode
from properties.case_checks import CaseError
from properties.probe import TREE_ITEMS

_DEFAULT = Case()
_RESETTABLE = (
    "wrong",
    "probe",
    "groups",
    "specials",
    "input_layout",
    "input_offset",
    "cotangent_offset",
    "cotangent_layout",
    "strided_buffers",
    "frozen",
    "input_grad",
    "affine",
    "tracking",
    "variance_exponent",
    "random_parameters",
    "rank_offset",
    "values",
    "last_values",
    "cotangent_exponent",
    "affine_exponent",
    "momentum",
    "eps",
    "seed",
)
_SEEDS = 16
"""Seeds with which a single channel, or a single step, is tried in place of several."""


def weight(case: Case) -> tuple[Any, ...]:
    """Return the key by which cases are compared.

    Ranks, steps, ranks without values (which are a feature, not the lack of one), steps with sizes of their
    own, elements, channels, then the length of the JSON.
    """
    empty = sum(case.count_of(rank) == 0 for rank in range(case.world_size))
    resized, text = sum(step.resized for step in case.steps), encode(case)
    sizes = (len(case.steps), empty, resized, case.elements, case.channels)
    return case.world_size, *sizes, len(text), text


def simpler(case: Case) -> Iterator[Case]:
    """Yield cases that are simpler than `case`, the boldest first."""
    for changes in _changes(case):
        try:
            candidate = msgspec.structs.replace(case, **changes)
        except CaseError:
            continue
        if weight(candidate) < weight(case):
            yield candidate


def _changes(case: Case) -> Iterator[dict[str, Any]]:
    yield from _plain(case)
    yield from _fewer_ranks(case)
    yield from _fewer_steps(case)
    yield from _smaller(case)
    if case.param_dtype != case.dtype and case.dtype == "float64":
        yield {"dtype": "float32", "param_dtype": "float32"}
    yield {"dtype": "float32", "param_dtype": "float32"}
    yield {"param_dtype": "float32"}
    for name in _RESETTABLE:
        if getattr(case, name) != getattr(_DEFAULT, name):
            yield {name: getattr(_DEFAULT, name)}
    for index in range(len(case.specials)):
        yield {"specials": case.specials[:index] + case.specials[index + 1 :]}
    if len(case.steps) > 1:  # what only a later step shows, the first of another seed may show
        alone = dict.fromkeys(case.steps)
        yield from (
            _starting_with((step,)) | {"seed": seed} for step in alone for seed in range(_SEEDS // len(alone))
        )
    if case.channels > 1:  # what only one of many channels shows, one channel of another seed may show
        yield from ({"channels": 1, "last_values": "", "seed": seed} for seed in range(_SEEDS))


def _plain(case: Case) -> Iterator[dict[str, Any]]:
    """Yield changes of everything but the ranks' batches at once: where a run is slow, one may have to do."""
    options: dict[str, Any] = {name: getattr(_DEFAULT, name) for name in _RESETTABLE if name != "groups"}
    if case.probe == "conversion":  # What fails may be the tree alone; low seeds have a single item each.
        alone = {name: value for name, value in options.items() if name not in ("probe", "seed")}
        alone |= {"channels": 1, "spatial": ((),), "steps": _DEFAULT.steps}
        alone |= {"dtype": "float32", "param_dtype": "float32"}
        yield from ({**alone, "batches": (2,), "groups": (), "seed": k} for k in range(TREE_ITEMS))
        yield from ({**alone, "seed": k} for k in range(TREE_ITEMS))
        yield alone
    shape = {"channels": 1, "spatial": ((),), "dtype": "float32", "param_dtype": "float32"}
    yield {**options, **shape, "steps": _DEFAULT.steps, "batches": tuple(min(n, 2) for n in case.batches)}
    yield {**options, **shape, "steps": _DEFAULT.steps}
    for batches in ((1, 1), (1, 2), (2, 2)) if case.world_size > 1 else ():
        for seed in (0, 1):
            two = {"batches": batches, "groups": (), "seed": seed}
            yield {**options, **shape, "steps": _DEFAULT.steps, **two}
    yield {**shape, "input_layout": "contiguous", "cotangent_layout": "contiguous"}
    yield {**options, "seed": case.seed, "values": case.values}
    if case.last_values:
        yield {**options, **shape, "seed": case.seed, "values": case.last_values}
        yield {"channels": 1, "values": case.last_values, "last_values": ""}


def _fewer_ranks(case: Case) -> Iterator[dict[str, Any]]:
    """Yield changes that keep two ranks, or drop one."""
    world = case.world_size
    pairs = [(a, b) for a in range(world) for b in range(a + 1, world)] if 2 < world <= 8 else []
    for keep in [*pairs, *(tuple(r for r in range(world) if r != drop) for drop in range(world))]:
        if keep:
            fewer = _only_ranks(case, keep)
            yield fewer
            if keep in pairs:  # What needs values in several steps needs two of them, where one is refused.
                yield fewer | _with_two(fewer)


def _only_ranks(case: Case, keep: tuple[int, ...]) -> dict[str, Any]:
    number = {rank: index for index, rank in enumerate(keep)}
    groups = tuple(tuple(number[r] for r in group if r in number) for group in case.groups)
    groups = tuple(group for group in groups if group)
    return {
        "batches": tuple(case.batches[rank] for rank in keep),
        "spatial": _kept(case.spatial, keep),
        "steps": tuple(
            msgspec.structs.replace(
                step,
                batches=tuple(step.batches[rank] for rank in keep) if step.batches else (),
                spatial=_kept(step.spatial, keep),
            )
            for step in case.steps
        ),
        "groups": () if len(groups) == 1 else groups,
        "input_grad": tuple(case.input_grad[rank] for rank in keep) if case.input_grad else (),
        "specials": tuple(
            msgspec.structs.replace(special, rank=number[special.rank % case.world_size])
            for special in case.specials
            if special.rank % case.world_size in number
        ),
    }


def _with_two(changes: dict[str, Any]) -> dict[str, Any]:
    """Return these sizes, of two samples at least wherever there are any."""
    steps = tuple(
        msgspec.structs.replace(step, batches=tuple(n and max(n, 2) for n in step.batches))
        for step in changes["steps"]
    )
    return {"batches": tuple(n and max(n, 2) for n in changes["batches"]), "steps": steps}


def _kept(spatial: tuple[tuple[int, ...], ...], keep: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(spatial[rank] for rank in keep) if len(spatial) > 1 else spatial


def _fewer_steps(case: Case) -> Iterator[dict[str, Any]]:
    for index in range(len(case.steps)):
        rest = case.steps[:index] + case.steps[index + 1 :]
        if rest:
            yield _starting_with(rest)
    for index, step in enumerate(case.steps):
        for plain in dict.fromkeys(_plainer(step)):
            if step != plain:
                yield {"steps": (*case.steps[:index], plain, *case.steps[index + 1 :])}


def _starting_with(steps: tuple[Step, ...]) -> dict[str, Any]:
    """Return the change to these steps: the sizes of the first become those of the case."""
    first = steps[0]
    sizes = {"batches": first.batches, "spatial": first.spatial}
    plain = msgspec.structs.replace(first, batches=(), spatial=())
    return {"steps": (plain, *steps[1:])} | {name: value for name, value in sizes.items() if value}


def _plainer(step: Step) -> Iterator[Step]:
    """Yield the step without all that it does beside, and without each of it."""
    yield Step()
    sizes = {"batches": (), "spatial": ()}
    undone = {"recompute": False, "accumulate": False, "edited": False, "rewritten": False, "frozen": False}
    yield msgspec.structs.replace(step, **undone, **sizes)
    yield msgspec.structs.replace(step, mode="train")
    yield msgspec.structs.replace(step, **sizes)
    if step.grad_mode != "enabled":
        yield msgspec.structs.replace(step, grad_mode="enabled", backward="now")
    if step.backward in ("twice", "deferred"):
        yield msgspec.structs.replace(step, backward="now")
    for name, value in undone.items():
        yield msgspec.structs.replace(step, **{name: value})


def _smaller(case: Case) -> Iterator[dict[str, Any]]:
    """Yield changes to fewer channels, samples and positions."""
    for channels in _less(case.channels, least=1):
        yield {"channels": channels}
    if case.spatial != ((),):
        plain = {"input_layout": "contiguous", "cotangent_layout": "contiguous"}
        steps = tuple(msgspec.structs.replace(step, spatial=()) for step in case.steps)
        yield {"spatial": ((),), "steps": steps, **plain}
        yield {"spatial": (tuple(1 for _ in case.spatial[0]),), "steps": steps}
    if len(case.spatial) > 1:
        yield from ({"spatial": (sizes,)} for sizes in dict.fromkeys(case.spatial))
    for rank, sizes in enumerate(case.spatial):
        for axis, size in enumerate(sizes):
            for less in _less(size, least=1):
                new = (*sizes[:axis], less, *sizes[axis + 1 :])
                yield {"spatial": (*case.spatial[:rank], new, *case.spatial[rank + 1 :])}
    for samples in (1, 2) if 0 in case.batches else ():
        yield {"batches": tuple(n or samples for n in case.batches)}
        for rank in (rank for rank, n in enumerate(case.batches) if n == 0):
            yield {"batches": (*case.batches[:rank], samples, *case.batches[rank + 1 :])}
    yield {"batches": tuple(min(n, 1) for n in case.batches)}
    yield {"batches": tuple(min(n, 2) for n in case.batches)}
    for rank, samples in enumerate(case.batches):
        for less in _less(samples, least=0):
            yield {"batches": (*case.batches[:rank], less, *case.batches[rank + 1 :])}
    for index, step in enumerate(case.steps):
        for rank, samples in enumerate(step.batches):
            for less in _less(samples, least=0):
                batches = (*step.batches[:rank], less, *step.batches[rank + 1 :])
                smaller = msgspec.structs.replace(step, batches=batches)
                yield {"steps": (*case.steps[:index], smaller, *case.steps[index + 1 :])}


def _less(size: int, *, least: int) -> tuple[int, ...]:
    """Return a few sizes below `size`: the least, half, one less."""
    return tuple(dict.fromkeys(n for n in (least, least + 1, size // 2, size - 1) if least <= n < size))

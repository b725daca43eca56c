"""Tables: what a byte of a drawn case stands for, in a domain.

A table has 256 entries, in which an alternative takes as many as its weight asks, in order from simple to
complicated. Tables are made once for a domain; alternatives that it excludes are left out and the others
share their place. Weights follow what hides faults: uneven and empty ranks, odd channel counts, offsets
between ranks, random parameters, independent layouts, several steps; most totals are small, where
normalisation by n and n - 1 shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from properties.case import (
    Affine,
    CotangentLayout,
    Dtype,
    Family,
    InputLayout,
    OddFamily,
    Probe,
    SpecialKind,
    Step,
    Wrong,
)
from properties.domain import Domain, DomainError, Size, layouts_of
from properties.generation.membership import groups_kind, step_kinds
from properties.generation.networks import ACTIVATIONS, Activation

T = TypeVar("T")
Table = tuple[T, ...]
Partition = tuple[tuple[int, ...], ...]
Resizing = Literal["", "fewer", "more", "rotated", "wider", "toggled"]
"""How later steps differ in size from the first."""
Weighted = Iterable[tuple[T, float]]

_COUNTS = ((1, 20), (2, 26), (3, 20), (4, 12), (5, 8), (6, 4), (7, 4), (8, 3), (17, 2), (33, 1))
_SIZES = ((1, 26), (2, 30), (3, 24), (4, 8), (5, 7), (7, 5))
_CHANNELS = (
    *((1, 24), (2, 5), (3, 17), (4, 4), (5, 12), (7, 12), (8, 4), (16, 2), (33, 2)),
    *((64, 2), (65, 5), (130, 4), (0, 7)),
)
_EMPTY = (("none", 76), ("one", 14), ("others", 6), ("group", 2), ("all", 2))
ANY = 0
"""In place of a target: any from 32 to 4096, of which each octave is as likely."""
_SCALES = (
    *((("", 0), 866), (("tall", 40), 35), (("wide", 64), 30), (("tall", 300), 54), (("wide", 700), 12)),
    *((("tall", 2500), 48), (("tall", ANY), 40), (("tall", 70_000), 20)),
    (("network", 0), 10),
)
LARGEST, LARGEST_ALONE = 1 << 21, 1 << 25
"""Elements of a rank of a network's size, among small cases and where there are none."""
_DTYPES: tuple[tuple[tuple[Dtype, Dtype], float], ...] = (
    (("float32", "float32"), 42),
    (("float16", "float32"), 9),
    (("float16", "float16"), 11),
    (("bfloat16", "float32"), 10),
    (("bfloat16", "bfloat16"), 15),
    (("float64", "float64"), 13),
)
_DIMS = ((2, 28), (3, 20), (4, 36), (5, 20))
_INPUTS: tuple[tuple[InputLayout, float], ...] = (
    *(("contiguous", 46), ("channels_last", 26), ("permuted", 15), ("sliced", 12)),
    *(("cropped", 9), ("split", 9)),
)
_COTANGENTS: tuple[tuple[CotangentLayout, float], ...] = (
    *(("contiguous", 54), ("channels_last", 20), ("permuted", 16), ("expanded", 10)),
    *(("cropped", 9), ("split", 9)),
)
_EPS = ((1e-5, 48), (1e-3, 14), (0.1, 8), (1.0, 7), (1e-8, 7), (1e-12, 7), (0.0, 13))
_MOMENTA: tuple[tuple[float | None, float], ...] = ((0.1, 42), (0.3, 20), (1.0, 11), (0.0, 7), (None, 20))
_AFFINE: tuple[tuple[Affine, float], ...] = (("both", 62), ("weight", 19), ("none", 19))
_FROZEN: tuple[tuple[tuple[Literal["weight", "bias"], ...], float], ...] = (
    *(((), 82), (("weight",), 7), (("bias",), 7), (("weight", "bias"), 4)),
)
# Most elements of the last three are blind or undecided, which is told; each has its 2 % all the same.
_FAMILIES: tuple[tuple[Family, float], ...] = (
    *(("ordinary", 63), ("large_offset", 12), ("mixed", 10), ("tiny_spread", 9)),
    *(("constant", 2.4), ("subnormal", 2.4), ("near_overflow", 2.4)),
)
# One such channel among many ordinary ones leaves nine tenths of the elements decided. One in three is left
# out again, where so many channels would be too many elements.
_LAST: tuple[tuple[OddFamily, float], ...] = (
    *(("", 85), ("constant", 6), ("tiny_spread", 3), ("near_overflow", 3), ("subnormal", 3)),
)
_OFFSET = ((0, 80), (1, 6), (3, 4), (8, 6), (64, 4))
_VARIANCE_EXPONENTS = ((0, 80), (18, 10), (-18, 10))
_RESIZINGS: tuple[tuple[Resizing, float], ...] = (
    *(("", 70), ("fewer", 6), ("more", 6), ("rotated", 8), ("wider", 6), ("toggled", 10)),
)
_OFFSETS = ((0, 34), (1, 26), (4, 22), (16, 12), (256, 3), (1024, 1))
_KINDS: tuple[tuple[SpecialKind, float], ...] = (
    *(("zero", 30), ("huge", 2), ("nan", 30), ("inf", 20), ("-inf", 14)),
)
_WRONG: tuple[tuple[Wrong, float], ...] = (("", 945), ("channels", 25), ("dims", 15), ("integer", 15))
_PROBES: tuple[tuple[Probe, float], ...] = (("", 14), ("repeatable", 1), ("scaling", 1))
_CONVERSION: tuple[tuple[Probe, float], ...] = (("conversion", 2),)
_GRADS: tuple[tuple[Literal["all", "none", "ragged"], float], ...] = (("all", 84), ("none", 8), ("ragged", 8))
BETWEEN, REWRITING, FREEZING = 0, -1, -2
"""In place of a number of steps: training between two evaluations; the same once more with other parameters;
parameters that are frozen in between."""
_PATTERNS = ((BETWEEN, 4), (REWRITING, 6), (FREEZING, 4))
_STEPS = ((1, 42), (2, 27), (3, 21), *_PATTERNS)
# In a single step momentum None is the same as 1.
_STEPS_CUMULATIVE = ((1, 14), (2, 40), (3, 36), *_PATTERNS)
_STEP: tuple[tuple[Step, float], ...] = (
    (Step(), 49),
    (Step(mode="eval"), 14),
    (Step(accumulate=True), 8),
    (Step(backward="deferred"), 7),
    (Step(recompute=True), 6),
    (Step(backward="none"), 4),
    (Step(mode="eval", backward="none", grad_mode="no_grad"), 3),
    (Step(mode="eval", backward="none", grad_mode="inference"), 3),
    (Step(backward="none", grad_mode="no_grad"), 4),
    (Step(backward="none", grad_mode="inference"), 2),
    (Step(backward="twice"), 4),
    (Step(edited=True), 4),
    (Step(rewritten=True), 3),
    (Step(frozen=True), 2),
    (Step(mode="eval", rewritten=True), 2),
    (Step(mode="eval", frozen=True), 1),
    (Step(mode="eval", edited=True), 1),
    (Step(mode="eval", backward="twice"), 1),
    (Step(accumulate=True, recompute=True), 3),
    (Step(accumulate=True, backward="twice"), 1),
    (Step(mode="eval", backward="deferred"), 2),
)


@dataclass(frozen=True, slots=True)
class Tables:
    """What each byte means in one domain; a table has 256 entries, simple ones first."""

    domain: Domain
    worlds: Table[int]
    dims: Table[int]
    dtypes: Table[tuple[Dtype, Dtype]]
    inputs: dict[int, Table[InputLayout]]
    cotangents: dict[int, Table[CotangentLayout]]
    empty: Table[str]
    eps: Table[float]
    offsets: Table[int]
    affine: Table[Affine]
    tracking: Table[bool]
    momenta: Table[float | None]
    families: Table[Family]
    last: Table[OddFamily]
    grads: Table[Literal["all", "none", "ragged"]]
    step: Table[Step]
    probes: Table[Probe]
    scales: Table[tuple[str, int]]
    networks: dict[int, tuple[Activation, ...]]
    largest: int


def table(weighted: Weighted[T]) -> Table[T]:
    """Return 256 entries in which each value has a share by its weight, at least one, in the given order."""
    items = list(weighted)
    total = sum(weight for _, weight in items)
    entries: list[T] = []
    spare, reached = 256 - len(items), 0.0
    for position, (value, weight) in enumerate(items):
        reached += weight
        stop = position + 1 + round(spare * reached / total)
        entries.extend([value] * (stop - len(entries)))
    return tuple(entries)


def _in_place(weighted: Sequence[tuple[T, float]], admitted: Callable[[T], bool]) -> Table[T]:
    """Return the table of all values in which the admitted ones share the place of the others.

    So a byte that stands for an admitted value stands for it in every domain.
    """
    within = table(item for item in weighted if admitted(item[0]))
    whole = table(weighted)
    others = [position for position, value in enumerate(whole) if not admitted(value)]
    entries = list(whole)
    for number, position in enumerate(others):
        entries[position] = within[number * 256 // len(others)]
    return tuple(entries)


@functools.lru_cache(maxsize=64)
def tables_for(
    domain: Domain, *, probes: bool, rare_world_sizes: tuple[int, ...], conversion: bool = False
) -> Tables:
    """Return the tables of `domain`; `conversion` adds that probe to the others.

    Raises:
        DomainError: If no case lies in the domain.
    """
    inputs, cotangents = layouts_of(domain)
    by_input = {dims: table(_for_dims(_INPUTS, inputs, dims)) for dims in domain.dims}
    by_cotangent = {dims: table(_for_dims(_COTANGENTS, cotangents, dims)) for dims in domain.dims}
    flat = "equal" in domain.spatial  # Without spatial sizes none differ.
    dims = [item for item in _DIMS if item[0] > 2 or flat]
    dims = [item for item in dims if by_input.get(item[0]) and by_cotangent.get(item[0])]
    allowed = _emptiness(domain)
    pairs = [item for item in _DTYPES if _admitted_pair(domain, *item[0])]
    cumulative = domain.momentum_none and domain.counter
    largest = LARGEST if "small" in domain.sizes else LARGEST_ALONE
    return Tables(
        domain=domain,
        worlds=_required(_worlds(domain, rare_world_sizes), domain, "groups", "world_sizes"),
        dims=_required(dims, domain, "layouts", "dims"),
        dtypes=_required(pairs, domain, "dtypes", "param_dtypes"),
        inputs=by_input,
        cotangents=by_cotangent,
        empty=table((value, weight) for value, weight in _EMPTY if value in allowed),
        eps=_in_place(_EPS, lambda eps: ("positive" if eps else "zero") in domain.eps),
        offsets=table(item for item in _OFFSET if not item[0] or domain.offsets),
        affine=table(item for item in _AFFINE if item[0] in domain.affine),
        tracking=table((value, 7 if value else 1) for value in (True, False) if value in domain.tracking),
        momenta=table(item for item in _MOMENTA if item[0] is not None or cumulative),
        families=table(item for item in _FAMILIES if item[0] in domain.values),
        last=table(item for item in _LAST if not item[0] or item[0] in domain.values),
        grads=table(item for item in _GRADS if item[0] != "ragged" or domain.ragged_grad),
        step=table(item for item in _STEP if _admitted_step(domain, item[0])),
        probes=table((_PROBES if probes else _PROBES[:1]) + (_CONVERSION if conversion else ())),
        scales=_in_place(_SCALES, lambda scale: _size_of(scale) in domain.sizes),
        networks={size: _activations(size, largest) for size in domain.dims},
        largest=largest,
    )


def _emptiness(domain: Domain) -> tuple[str, ...]:
    """Return which ranks may be without values: of equal batches all or none."""
    everything = ("none", "one", "others", "group", "all")
    allowed = {"never": everything[:1], "some": everything[:3], "all": everything}[domain.empty]
    if "uneven" not in domain.batches:
        return tuple(kind for kind in allowed if kind in ("none", "all"))
    return allowed if "equal" in domain.batches else tuple(kind for kind in allowed if kind != "all")


def _admitted_step(domain: Domain, step: Step) -> bool:
    return (step.mode == "train" or domain.eval) and set(step_kinds(step)) <= set(domain.schedule)


def _size_of(scale: tuple[str, int]) -> Size:
    return "network" if scale[0] == "network" else "small"


def _activations(dims: int, largest: int) -> tuple[Activation, ...]:
    """Return the shapes of so many dimensions of which a rank may hold a sample, small ones first."""
    fit = (one for one in ACTIVATIONS if len(one.spatial) + 2 == dims and one.elements <= largest)
    return tuple(sorted(fit, key=lambda one: one.elements))


def _required(items: Sequence[tuple[T, float]], domain: Domain, *keys: str) -> Table[T]:
    if not items:
        given = ", ".join(f"{key}={getattr(domain, key)!r}" for key in keys)
        raise DomainError(f"Expected a domain with at least one case, but got {given}, which excludes all.")
    return table(items)


def _for_dims(weighted: Iterable[tuple[T, float]], allowed: Sequence[T], dims: int) -> list[tuple[T, float]]:
    return [item for item in weighted if item[0] in allowed and (dims >= 4 or item[0] != "channels_last")]


def _admitted_pair(domain: Domain, dtype: Dtype, param_dtype: Dtype) -> bool:
    as_float32 = param_dtype == "float32" and "float32" in domain.param_dtypes
    as_own = param_dtype == dtype and "own" in domain.param_dtypes
    return dtype in domain.dtypes and (as_float32 or as_own)


def _worlds(domain: Domain, rare: tuple[int, ...]) -> list[tuple[int, float]]:
    weights = {1: 8.0, 2: 36.0, 3: 30.0}
    several = "equal" not in domain.batches or "equal" not in domain.spatial
    return [
        (size, 1.5 if size in rare else weights.get(size, 24.0))
        for size in sorted(set(domain.world_sizes))
        if _candidates(size, domain.groups) and not (several and size == 1)
    ]


def _candidates(world: int, kinds: tuple[str, ...]) -> list[tuple[Partition, float]]:
    """Return process groups of the admitted kinds, weighted: none at all, non-contiguous, single ranks."""
    everyone = tuple(range(world))
    found: list[Partition] = [()]
    if world >= 4:
        found += [(everyone[::2], everyone[1::2]), ((0, world - 1), everyone[1:-1])]
    if world >= 6:
        found += [(everyone[::3], everyone[1::3], everyone[2::3])]
    if world >= 3:
        found += [((0,), everyone[1:]), ((0, *everyone[2:]), (1,)), (everyone[:-1], everyone[-1:])]
    found += [(everyone,), tuple((rank,) for rank in everyone)] if world > 1 else [((0,),)]
    found = [partition for partition in found if groups_kind(partition) in kinds]
    return [(partition, 3.0 * len(found) if partition == () else 1.0) for partition in found]


@functools.lru_cache(maxsize=256)
def partitions(world: int, kinds: tuple[str, ...]) -> Table[Partition]:
    """Return the table of process groups of so many ranks, of the kinds that a domain admits."""
    return table(_candidates(world, kinds))


COUNTS_TABLE, SIZES_TABLE, CHANNELS_TABLE = table(_COUNTS), table(_SIZES), table(_CHANNELS)
FROZEN_TABLE = table(_FROZEN)
OFFSETS_TABLE, KINDS_TABLE, WRONG_TABLE = table(_OFFSETS), table(_KINDS), table(_WRONG)
STEPS_TABLE, STEPS_CUMULATIVE_TABLE = table(_STEPS), table(_STEPS_CUMULATIVE)
SPECIALS_TABLE = table(((0, 88), (1, 9), (2, 3)))
VARIANCE_EXPONENTS_TABLE, RESIZINGS_TABLE = table(_VARIANCE_EXPONENTS), table(_RESIZINGS)

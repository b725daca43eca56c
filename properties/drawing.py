"""Drawing: a case from a string of bytes, inside a domain.

Rules
-----
- Each choice is one byte, and 0 is the simplest choice: whoever minimises a failing case lowers bytes, and
  each feature of the case goes away by itself.
- A byte means the same whatever the other bytes are, except where a size or layout would be impossible, and
  for the number of steps, which momentum None raises.
- No case outside the domain comes out, whatever the bytes; every value of the domain that some case can have
  does come out.

Theory of operation
-------------------
A byte is looked up in a table of 256 entries, in which an alternative takes as many entries as its weight
asks, in order from simple to complicated. The tables are made once for a domain; alternatives that it
excludes are left out and the others share their place. One case costs some 40 look-ups. Weights follow
what hides faults: uneven and empty ranks, odd channel counts, offsets between ranks, random parameters,
independent layouts, several steps; most totals are small, where normalisation by n and n - 1 shows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from properties.admission import groups_kind
from properties.case import (
    Affine,
    Case,
    CotangentLayout,
    Dtype,
    Family,
    InputLayout,
    OddFamily,
    Probe,
    Special,
    SpecialKind,
    Step,
    Wrong,
)
from properties.domain import Domain, DomainError, layouts_of

T = TypeVar("T")
Table = tuple[T, ...]
Partition = tuple[tuple[int, ...], ...]
Weighted = Iterable[tuple[T, float]]

SHAPE_BYTES, OPTION_BYTES, VALUE_BYTES = 19, 14, 15
TOTAL_BYTES = SHAPE_BYTES + OPTION_BYTES + VALUE_BYTES
_ELEMENTS = 8_000

_COUNTS = ((1, 20), (2, 26), (3, 20), (4, 12), (5, 8), (6, 4), (7, 4), (8, 3), (17, 2), (33, 1))
_SIZES = ((1, 26), (2, 30), (3, 24), (4, 8), (5, 7), (7, 5))
_CHANNELS = (
    *((1, 24), (2, 5), (3, 17), (4, 4), (5, 12), (7, 12), (8, 4), (16, 2), (33, 2)),
    *((64, 2), (65, 5), (130, 4), (0, 7)),
)
_EMPTY = (("none", 76), ("one", 14), ("others", 6), ("group", 2), ("all", 2))
_SCALES = (
    *((("", 0), 866), (("tall", 40), 35), (("wide", 64), 30), (("tall", 300), 54), (("wide", 700), 12)),
    *((("tall", 2500), 48), (("tall", 70_000), 20)),
)
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
    *(("contiguous", 46), ("channels_last", 26), ("permuted", 15), ("sliced", 15)),
)
_COTANGENTS: tuple[tuple[CotangentLayout, float], ...] = (
    *(("contiguous", 54), ("channels_last", 20), ("permuted", 16), ("expanded", 10)),
)
_EPS = ((1e-5, 48), (1e-3, 14), (0.1, 8), (1.0, 7), (1e-8, 7), (1e-12, 7), (0.0, 13))
_MOMENTA: tuple[tuple[float | None, float], ...] = ((0.1, 42), (0.3, 20), (1.0, 11), (0.0, 7), (None, 20))
_AFFINE: tuple[tuple[Affine, float], ...] = (("both", 62), ("weight", 19), ("none", 19))
_FROZEN: tuple[tuple[tuple[Literal["weight", "bias"], ...], float], ...] = (
    *(((), 82), (("weight",), 7), (("bias",), 7), (("weight", "bias"), 4)),
)
# The last three are rare because most of their elements are blind or undecided: drawn ten times as often,
# they raise the share of (case, property) pairs with more than a tenth of such elements from 0.9 % to 1.5 %.
_FAMILIES: tuple[tuple[Family, float], ...] = (
    *(("ordinary", 67), ("large_offset", 12), ("mixed", 10), ("tiny_spread", 10)),
    *(("constant", 0.3), ("subnormal", 0.3), ("near_overflow", 0.6)),
)
# One such channel among many ordinary ones leaves nine tenths of the elements decided.
_LAST: tuple[tuple[OddFamily, float], ...] = (
    *(("", 86), ("constant", 6), ("tiny_spread", 3), ("near_overflow", 3), ("subnormal", 2)),
)
_MANY = 12
_OFFSETS = ((0, 34), (1, 26), (4, 22), (16, 12), (256, 3), (1024, 1))
_KINDS: tuple[tuple[SpecialKind, float], ...] = (
    *(("zero", 30), ("huge", 2), ("nan", 30), ("inf", 20), ("-inf", 14)),
)
_WRONG: tuple[tuple[Wrong, float], ...] = (("", 945), ("channels", 25), ("dims", 15), ("integer", 15))
_PROBES: tuple[tuple[Probe, float], ...] = (("", 14), ("repeatable", 1), ("scaling", 1))
_CONVERSION: tuple[tuple[Probe, float], ...] = (("conversion", 2),)
_GRADS: tuple[tuple[Literal["all", "none", "ragged"], float], ...] = (("all", 84), ("none", 8), ("ragged", 8))
_BETWEEN = 0
"""In place of a number of steps: training between two evaluations."""
_STEPS = ((1, 46), (2, 28), (3, 22), (_BETWEEN, 4))
# In a single step momentum None is the same as 1.
_STEPS_CUMULATIVE = ((1, 16), (2, 42), (3, 38), (_BETWEEN, 4))
_STEP: tuple[tuple[Step, float], ...] = (
    (Step(), 49),
    (Step(mode="eval"), 17),
    (Step(accumulate=True), 10),
    (Step(backward="deferred"), 8),
    (Step(recompute=True), 6),
    (Step(backward="none"), 5),
    (Step(accumulate=True, recompute=True), 3),
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
    affine: Table[Affine]
    tracking: Table[bool]
    momenta: Table[float | None]
    families: Table[Family]
    last: Table[OddFamily]
    grads: Table[Literal["all", "none", "ragged"]]
    step: Table[Step]
    probes: Table[Probe]


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
    dims = [item for item in _DIMS if by_input.get(item[0]) and by_cotangent.get(item[0])]
    emptiness = ("none", "one", "others", "group", "all")
    allowed = {"never": emptiness[:1], "some": emptiness[:3], "all": emptiness}[domain.empty]
    pairs = [item for item in _DTYPES if _admitted_pair(domain, *item[0])]
    return Tables(
        domain=domain,
        worlds=_required(_worlds(domain, rare_world_sizes), domain, "groups", "world_sizes"),
        dims=_required(dims, domain, "layouts", "dims"),
        dtypes=_required(pairs, domain, "dtypes", "param_dtypes"),
        inputs=by_input,
        cotangents=by_cotangent,
        empty=table((value, weight) for value, weight in _EMPTY if value in allowed),
        affine=table(item for item in _AFFINE if item[0] in domain.affine),
        tracking=table((value, 7 if value else 1) for value in (True, False) if value in domain.tracking),
        momenta=table(item for item in _MOMENTA if item[0] is not None or domain.momentum_none),
        families=table(item for item in _FAMILIES if item[0] in domain.values),
        last=table(item for item in _LAST if not item[0] or item[0] in domain.values),
        grads=table(item for item in _GRADS if item[0] != "ragged" or domain.ragged_grad),
        step=table(item for item in _STEP if item[0].mode == "train" or domain.eval),
        probes=table((_PROBES if probes else _PROBES[:1]) + (_CONVERSION if conversion else ())),
    )


def case_from(choices: bytes, tables: Tables) -> Case:
    """Return the case that `choices`, TOTAL_BYTES bytes, stand for in the domain of `tables`."""
    shape, options = choices[:SHAPE_BYTES], choices[SHAPE_BYTES : SHAPE_BYTES + OPTION_BYTES]
    values = choices[SHAPE_BYTES + OPTION_BYTES :]
    world, dims = tables.worlds[shape[0]], tables.dims[shape[1]]
    groups = _partitions(world, tables.domain.groups)[shape[2]]
    batches, spatial, channels = _sizes(shape, tables, world=world, dims=dims, groups=groups)
    cotangent = tables.cotangents[dims][options[2]]
    if cotangent == "expanded" and _is_lonely(batches, groups):  # Constant in the group: the gradient is 0.
        cotangent = next((one for one in tables.cotangents[dims] if one != "expanded"), cotangent)
    chosen = _options(options, tables)
    last = tables.last[values[14]]
    if last:
        channels, last = _among_many(channels, last, batches, spatial)
    return Case(
        batches=batches,
        spatial=spatial,
        channels=channels,
        groups=groups,
        input_layout=tables.inputs[dims][options[1]],
        cotangent_layout=cotangent,
        input_grad=_input_grad(tables.grads[options[9]], options[9], groups, world=world),
        random_parameters=values[0] >= 32,
        values=tables.families[values[1]],
        last_values=last,
        rank_offset=_OFFSETS_TABLE[values[2]],
        specials=_specials(values[3:8], batches, spatial, channels=channels, finite=chosen["momentum"] == 0),
        wrong=_WRONG_TABLE[values[8]],
        probe=tables.probes[values[9]],
        seed=int.from_bytes(values[10:14], "big"),
        **chosen,
    )


def _options(options: bytes, tables: Tables) -> dict[str, Any]:
    """Return the fields of a case that depend on no size."""
    dtype, param_dtype = tables.dtypes[options[0]]
    affine = tables.affine[options[5]]
    present = {"both": ("weight", "bias"), "weight": ("weight",), "none": ()}[affine]
    momentum = tables.momenta[options[4]]
    counts = _STEPS_TABLE if momentum is not None else _STEPS_CUMULATIVE_TABLE
    steps = _schedule(
        counts[options[10]], [tables.step[byte] for byte in options[11:14]], eval=tables.domain.eval
    )
    tracking = tables.tracking[options[6]]
    if not tracking and any(step.mode == "eval" for step in steps[:-1]):
        # A rank with one value refuses to evaluate without buffers; its peers would wait in the next step.
        tracking = tables.tracking[0]
    if not tracking and options[13] >= 128 and tables.domain.eval:
        steps = (*steps[:-1], Step(mode="eval"))  # what a flag that is ignored tracks shows there
    return {
        "dtype": dtype,
        "param_dtype": param_dtype,
        "momentum": momentum,
        "eps": _EPS_TABLE[options[3]],
        "affine": affine,
        "tracking": tracking,
        "strided_buffers": options[7] >= 224,
        "frozen": tuple(name for name in _FROZEN_TABLE[options[8]] if name in present),
        "steps": steps,
    }


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
    return [
        (size, 1.5 if size in rare else weights.get(size, 24.0))
        for size in sorted(set(domain.world_sizes))
        if _candidates(size, domain.groups)
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
def _partitions(world: int, kinds: tuple[str, ...]) -> Table[Partition]:
    return table(_candidates(world, kinds))


def _sizes(
    shape: bytes, tables: Tables, *, world: int, dims: int, groups: Partition
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], int]:
    """Return batches, spatial sizes and channels, from bytes 3 on; what is unusual comes first."""
    channel, scale, ragged, empty, other = shape[3:8]
    batches = [_COUNTS_TABLE[shape[8 + rank % 8]] for rank in range(world)]
    partition = groups or (tuple(range(world)),)
    for rank in _empty_ranks(tables.empty[empty], empty, partition, domain=tables.domain):
        batches[rank] = 0
    sizes = [_SIZES_TABLE[byte] for byte in shape[16 : 16 + dims - 2]]
    how, target = _SCALES_TABLE[scale]
    if how == "wide" and dims > 2:
        sizes[-1] = max(sizes[-1], target // math.prod(sizes[:-1]) | 1)
    elif how == "tall":
        sizes = [size | 1 for size in sizes]  # Long counts that are round numbers do not round.
    spatial = _ragged(tuple(sizes), ragged, world=world)
    if (how == "tall" or (how and dims == 2)) and any(batches):
        filled = [rank for rank in range(world) if batches[rank]]
        # Counts that are rounded show with two of a size of which one is rounded and the other is not.
        for rank in filled[: 2 if other >= 32 and 100 < target < 10_000 else 1]:
            samples = -(-target // math.prod(spatial[rank % len(spatial)])) + (other + 17 * rank) % 61
            batches[rank] = max(batches[rank], samples | 1 if rank == filled[0] else samples + -samples % 4)
    total = sum(n * math.prod(spatial[rank % len(spatial)]) for rank, n in enumerate(batches))
    channels = _CHANNELS_TABLE[channel] or 1 + other % 130
    return tuple(batches), spatial, min(channels, max(1, _ELEMENTS // max(1, total)))


def _among_many(
    channels: int, last: OddFamily, batches: tuple[int, ...], spatial: tuple[tuple[int, ...], ...]
) -> tuple[int, OddFamily]:
    """Return enough channels for an odd last one, or no odd one where that would be too many elements."""
    total = sum(n * math.prod(spatial[rank % len(spatial)]) for rank, n in enumerate(batches))
    if total * _MANY > _ELEMENTS:
        return channels, ""
    return max(channels, _MANY), last


def _empty_ranks(how: str, byte: int, partition: Partition, *, domain: Domain) -> set[int]:
    world = sum(map(len, partition))
    one = (255 - byte) % world
    whole = set(partition[one % len(partition)])
    empty = {
        "none": set(),
        "one": {one} if world > 1 else set(),
        "others": set(range(world)) - {one},
        "group": whole,
        "all": set(range(world)),
    }[how]
    if domain.empty == "some":
        empty -= {group[0] for group in partition if empty.issuperset(group)}
    return empty


def _is_lonely(batches: tuple[int, ...], groups: Partition) -> bool:
    """Whether all values of some group are on one rank."""
    partition = groups or (tuple(range(len(batches))),)
    return any(sum(batches[rank] > 0 for rank in group) == 1 for group in partition)


def _ragged(sizes: tuple[int, ...], byte: int, *, world: int) -> tuple[tuple[int, ...], ...]:
    """Return one tuple of spatial sizes or, for the last fifth of the bytes, one that differs by rank."""
    if byte < 208 or not sizes or world == 1:
        return (sizes,)
    more = [((byte >> rank % 4) ^ rank) % 3 for rank in range(world)]
    if len(set(more)) == 1:
        more[0] += 1
    axis = byte % len(sizes)
    return tuple((*sizes[:axis], sizes[axis] + extra, *sizes[axis + 1 :]) for extra in more)


def _input_grad(how: str, byte: int, groups: Partition, *, world: int) -> tuple[bool, ...]:
    if how == "all":
        return ()
    off = [how == "none"] * world
    largest = max(groups or (tuple(range(world)),), key=len)
    if how == "ragged" and len(largest) > 1:
        off[largest[(255 - byte) % len(largest)]] = True
    return tuple(not one for one in off) if any(off) else ()


def _schedule(count: int, drawn: list[Step], *, eval: bool) -> tuple[Step, ...]:
    first = drawn[0]
    if first.accumulate:  # Nothing to accumulate onto yet.
        first = Step(mode=first.mode, backward=first.backward, recompute=first.recompute)
    if count == _BETWEEN and eval:
        between = next((one for one in drawn if one.mode == "train"), Step())
        return (Step(mode="eval"), between, Step(mode="eval"))
    return (first, *drawn[1 : count or 3])


def _specials(
    choices: bytes,
    batches: tuple[int, ...],
    spatial: tuple[tuple[int, ...], ...],
    *,
    channels: int,
    finite: bool,
) -> tuple[Special, ...]:
    """Return up to two replaced elements, on ranks that are not empty.

    With momentum 0 they are finite, since whether 0 times a NaN reaches a buffer is left open.
    """
    full = [rank for rank, n in enumerate(batches) if n]
    found: list[Special] = []
    for kind, place in (choices[1:3], choices[3:5])[: _SPECIALS_TABLE[choices[0]]] if full else ():
        rank = full[place % len(full)]
        replaced = _KINDS_TABLE[kind]
        if finite and replaced in ("nan", "inf", "-inf"):
            replaced = "zero"
        found.append(
            Special(
                kind=replaced,
                rank=rank,
                sample=place // 4 % batches[rank],
                channel=place // 16 % channels,
                position=place // 3 % math.prod(spatial[rank if len(spatial) > 1 else 0]),
            )
        )
    return tuple(found)


_COUNTS_TABLE, _SIZES_TABLE, _CHANNELS_TABLE = table(_COUNTS), table(_SIZES), table(_CHANNELS)
_SCALES_TABLE, _EPS_TABLE, _FROZEN_TABLE = table(_SCALES), table(_EPS), table(_FROZEN)
_OFFSETS_TABLE, _KINDS_TABLE, _WRONG_TABLE = table(_OFFSETS), table(_KINDS), table(_WRONG)
_STEPS_TABLE, _STEPS_CUMULATIVE_TABLE = table(_STEPS), table(_STEPS_CUMULATIVE)
_SPECIALS_TABLE = table(((0, 88), (1, 9), (2, 3)))

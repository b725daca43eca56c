"""Drawing: a case from a string of bytes, inside a domain.

Rules
-----
- Each choice is one byte, and 0 is the simplest choice: whoever minimises a failing case lowers bytes, and
  each feature of the case goes away by itself.
- A byte means the same whatever the other bytes are, except where a size or layout would be impossible, for
  the number of steps, which momentum None raises, and for sizes where the scale is that of a network.
- No case outside the domain comes out, whatever the bytes; every value of the domain that some case can have
  does come out.

Theory of operation
-------------------
A byte is looked up in a table (`properties.generation.byte_tables`); one case costs some 40 look-ups. Why
bytes and not strategies of Hypothesis' own: it pays for each choice when it draws, mutates and shrinks, and
of one string it still lowers every byte by itself. What that gives up: Hypothesis does not know what a byte
means, and lowers it when its place comes; so the bytes of the shape stand first.
"""

from __future__ import annotations

import math
from typing import Any

from properties.case import Case, OddFamily, Special, Step
from properties.domain import Domain
from properties.generation.byte_tables import (
    CHANNELS_TABLE,
    COUNTS_TABLE,
    FROZEN_TABLE,
    KINDS_TABLE,
    OFFSETS_TABLE,
    RESIZINGS_TABLE,
    SIZES_TABLE,
    SPECIALS_TABLE,
    STEPS_CUMULATIVE_TABLE,
    STEPS_TABLE,
    VARIANCE_EXPONENTS_TABLE,
    WRONG_TABLE,
    Partition,
    Tables,
    partitions,
)
from properties.generation.schedules import resized, schedule
from properties.values.period import REPEATS_ABOVE

SHAPE_BYTES, OPTION_BYTES, VALUE_BYTES, LATER_BYTES = 19, 14, 15, 8
TOTAL_BYTES = SHAPE_BYTES + OPTION_BYTES + VALUE_BYTES + LATER_BYTES
_ANY_FROM = 192
"""Bytes from here on stand for a number of a continuous range in place of a usual one."""
_MANY_FROM = 244
"""Bytes from here on stand for batches of any size up to 64."""
_ELEMENTS = 8_000
_MOST_STEPS = 3
_MANY = 12

_WITH_GAPS = ("sliced", "cropped", "split", "expanded")
"""Layouts that have a storage of their own, in which they begin where they must."""


def case_from(choices: bytes, tables: Tables) -> Case:
    """Return the case that `choices`, TOTAL_BYTES bytes, stand for in the domain of `tables`."""
    shape, options = choices[:SHAPE_BYTES], choices[SHAPE_BYTES : SHAPE_BYTES + OPTION_BYTES]
    values = choices[SHAPE_BYTES + OPTION_BYTES : -LATER_BYTES]
    later = choices[-LATER_BYTES:]
    world, dims = tables.worlds[shape[0]], tables.dims[shape[1]]
    groups = partitions(world, tables.domain.groups)[shape[2]]
    batches, spatial, channels = _sizes(shape, later[5], tables, world=world, dims=dims, groups=groups)
    cotangent = tables.cotangents[dims][options[2]]
    if cotangent == "expanded" and _is_lonely(batches, groups):  # Constant in the group: the gradient is 0.
        cotangent = next((one for one in tables.cotangents[dims] if one != "expanded"), cotangent)
    chosen = _options(options, later, tables)
    last = tables.last[values[14]]
    if last:
        channels, last = _among_many(channels, last, batches, spatial)
    most = channels * max(batches) * math.prod(map(max, zip(*spatial, strict=True)))
    large = 4 * most > REPEATS_ABOVE  # Where nothing repeats, nothing may repeat in a later step.
    chosen["steps"] = resized(
        chosen["steps"],
        "" if large else RESIZINGS_TABLE[later[6]],
        later[7],
        batches=batches,
        spatial=spatial,
        partition=groups,
        domain=tables.domain,
    )
    layout = tables.inputs[dims][options[1]]
    return Case(
        batches=batches,
        spatial=spatial,
        channels=channels,
        groups=groups,
        input_layout=layout,
        cotangent_layout=cotangent,
        input_offset=0 if layout in _WITH_GAPS else tables.offsets[later[0]],
        cotangent_offset=0 if cotangent in _WITH_GAPS else tables.offsets[later[1]],
        input_grad=_input_grad(tables.grads[options[9]], options[9], groups, world=world),
        random_parameters=values[0] >= 40,
        values=tables.families[values[1]],
        last_values=last,
        rank_offset=OFFSETS_TABLE[values[2]],
        specials=_specials(values[3:8], batches, spatial, channels=channels, finite=chosen["momentum"] == 0),
        wrong=WRONG_TABLE[values[8]],
        probe=tables.probes[values[9]],
        seed=int.from_bytes(values[10:14], "big"),
        **chosen,
    )


def _options(options: bytes, later: bytes, tables: Tables) -> dict[str, Any]:
    """Return the fields of a case that depend on no size."""
    dtype, param_dtype = tables.dtypes[options[0]]
    affine = tables.affine[options[5]]
    present = {"both": ("weight", "bias"), "weight": ("weight",), "none": ()}[affine]
    momentum = tables.momenta[options[4]]
    counts = STEPS_TABLE if momentum is not None else STEPS_CUMULATIVE_TABLE
    drawn = [tables.step[byte] for byte in options[11:14]]
    steps = schedule(counts[options[10]], drawn, domain=tables.domain)
    tracking = tables.tracking[options[6]]
    if not tracking and any(step.mode == "eval" for step in steps[:-1]):
        # A rank with one value refuses to evaluate without buffers; its peers would wait in the next step.
        tracking = tables.tracking[0]
    if not tracking and options[13] >= 128 and tables.domain.eval:
        steps = (*steps[:-1], Step(mode="eval"))  # what a flag that is ignored tracks shows there
    exponent = VARIANCE_EXPONENTS_TABLE[later[4]] if tracking else 0
    if exponent and tables.domain.eval and all(step.mode == "train" for step in steps):
        steps = (*steps[: _MOST_STEPS - 1], Step(mode="eval"))  # in training nobody need look at it
    eps = tables.eps[options[3]]
    return {
        "dtype": dtype,
        "param_dtype": param_dtype,
        "momentum": _any_momentum(later[3]) if momentum and later[3] >= _ANY_FROM else momentum,
        "eps": _any_eps(later[2]) if eps and later[2] >= _ANY_FROM else eps,
        "variance_exponent": exponent,
        "counter": tables.domain.counter,
        "affine": affine,
        "tracking": tracking,
        "strided_buffers": options[7] >= 224,
        "frozen": tuple(name for name in FROZEN_TABLE[options[8]] if name in present),
        "steps": steps,
    }


def _any_eps(byte: int) -> float:
    """Return any eps from 1e-12 to 1, of which each decade is as likely."""
    return float(f"{10 ** (-12 * (byte - _ANY_FROM) / (255 - _ANY_FROM)):.3g}")


def _any_momentum(byte: int) -> float:
    """Return any momentum between 0 and 1."""
    return round((byte - _ANY_FROM + 1) / (257 - _ANY_FROM), 4)


def _sizes(
    shape: bytes, any_size: int, tables: Tables, *, world: int, dims: int, groups: Partition
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], int]:
    """Return batches, spatial sizes and channels, from bytes 3 on; what is unusual comes first."""
    channel, scale, ragged, empty, other = shape[3:8]
    drawn = shape[8:16] if "uneven" in tables.domain.batches else bytes([shape[8]] * 8)
    counts = COUNTS_TABLE if any_size < _MANY_FROM else tuple(range(1, 65))
    batches = [counts[drawn[rank % 8] * len(counts) // 256] for rank in range(world)]
    partition = groups or (tuple(range(world)),)
    for rank in _empty_ranks(tables.empty[empty], empty, partition, domain=tables.domain):
        batches[rank] = 0
    sizes = [SIZES_TABLE[byte] for byte in shape[16 : 16 + dims - 2]]
    how, target = tables.scales[scale]
    target = target or round(2 ** (5 + any_size * 7 / 255))
    if how == "network":
        batches, spatial, channels = _network(
            shape, tables, world=world, dims=dims, full=[n > 0 for n in batches]
        )
        return tuple(_as_asked(batches, tables.domain)), spatial, channels
    if how == "wide" and dims > 2:
        sizes[-1] = max(sizes[-1], target // math.prod(sizes[:-1]) | 1)
    elif how == "tall":
        sizes = [size | 1 for size in sizes]  # Long counts that are round numbers do not round.
    spatial = _ragged(tuple(sizes), ragged, tables.domain, world=world)
    if (how == "tall" or (how and dims == 2)) and any(batches):
        filled = [rank for rank in range(world) if batches[rank]]
        # Counts that are rounded show with two of a size of which one is rounded and the other is not.
        for rank in filled[: 2 if other >= 32 and 100 < target < 10_000 else 1]:
            samples = -(-target // math.prod(spatial[rank % len(spatial)])) + (other + 17 * rank) % 61
            batches[rank] = max(batches[rank], samples | 1 if rank == filled[0] else samples + -samples % 4)
    if "uneven" not in tables.domain.batches:
        most = REPEATS_ABOVE // max(math.prod(one) for one in spatial)
        batches = [min(n, most) for n in batches]
    batches = _as_asked(batches, tables.domain)
    total = sum(n * math.prod(spatial[rank % len(spatial)]) for rank, n in enumerate(batches))
    channels = CHANNELS_TABLE[channel] or 1 + other % 130
    return tuple(batches), spatial, min(channels, max(1, _ELEMENTS // max(1, total)))


def _network(
    shape: bytes, tables: Tables, *, world: int, dims: int, full: list[bool]
) -> tuple[list[int], tuple[tuple[int, ...], ...], int]:
    """Return sizes of a batch norm of a known network: one rank holds most, none more than `largest`.

    All ranks together hold at most `largest`, or, among small cases, four times that, but for what spatial
    sizes that differ by rank add.
    """
    channel, _, ragged, _, other = shape[3:8]
    together = tables.largest * (4 if "small" in tables.domain.sizes else 1)
    shapes = tables.networks[dims]
    fit = [one for one in shapes if one.elements * world <= together] or shapes[:1]
    activation = fit[channel * len(fit) // 256]
    spatial = _ragged(activation.spatial, ragged, tables.domain, world=world)
    sizes = [activation.channels * math.prod(spatial[rank % len(spatial)]) for rank in range(world)]
    most = min(REPEATS_ABOVE << other % (tables.largest // REPEATS_ABOVE).bit_length(), together)
    lead = (other >> 3) % world
    share = min(most, (together - most) // max(1, world - 1))
    batches = [max(1, share * (shape[8 + rank % 8] + 1) // 256 // size) for rank, size in enumerate(sizes)]
    batches[lead] = 0
    left = together - sum(n * size for n, size in zip(batches, sizes, strict=True))
    batches[lead] = max(REPEATS_ABOVE // sizes[lead] + 1, min(most, left) // sizes[lead])
    if "uneven" not in tables.domain.batches:
        size = max(sizes)
        batches = [max(REPEATS_ABOVE // size + 1, min(most, together // world) // size)] * world
    if full[lead]:
        batches = [n if kept else 0 for n, kept in zip(batches, full, strict=True)]
    return batches, spatial, activation.channels


def _as_asked(batches: list[int], domain: Domain) -> list[int]:
    """Return batch sizes that are equal or uneven, where the domain has only the one or the other."""
    if "uneven" not in domain.batches:
        return [max(batches)] * len(batches)
    if "equal" not in domain.batches and len(set(batches)) == 1:
        return [batches[0] + 1, *batches[1:]]
    return batches


def _among_many(
    channels: int, last: OddFamily, batches: tuple[int, ...], spatial: tuple[tuple[int, ...], ...]
) -> tuple[int, OddFamily]:
    """Return enough channels for an odd last one; none is odd where they would be too many elements."""
    total = sum(n * math.prod(spatial[rank % len(spatial)]) for rank, n in enumerate(batches))
    if total * _MANY > _ELEMENTS:
        return channels, last if channels >= _MANY else ""
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


def _ragged(sizes: tuple[int, ...], byte: int, domain: Domain, *, world: int) -> tuple[tuple[int, ...], ...]:
    """Return one tuple of spatial sizes or, for the last fifth of the bytes, one that differs by rank."""
    if domain.spatial == ("ragged",):
        byte = 208 + byte * 48 // 256
    if byte < 208 or not sizes or world == 1 or "ragged" not in domain.spatial:
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
    for kind, place in (choices[1:3], choices[3:5])[: SPECIALS_TABLE[choices[0]]] if full else ():
        rank = full[place % len(full)]
        replaced = KINDS_TABLE[kind]
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

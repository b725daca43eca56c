"""Schedules: the steps of a drawn case, and the sizes that later ones have.

Rules
-----
- Patterns of steps that only chance would bring about are numbers of steps of their own (`byte_tables`).
- What a step does that the ones before it do not allow is left out, and the step is plain in that respect.
- The first step has the sizes of the case; a later one other sizes of the same kinds, so that it lies in the
  domain whenever the first does, with at most twice the elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from properties.case import Step
from properties.domain import Domain
from properties.generation.byte_tables import BETWEEN, FREEZING, REWRITING, Partition, Resizing

Batches = tuple[int, ...]
Spatial = tuple[tuple[int, ...], ...]


def schedule(count: int, drawn: Sequence[Step], *, domain: Domain) -> tuple[Step, ...]:
    """Return the first `count` of the `drawn` steps, or the pattern that `count` stands for."""
    first = drawn[0]
    if count == BETWEEN and domain.eval:
        between = next((step for step in drawn if step.mode == "train"), Step())
        return tuple(_possible((Step(mode="eval"), between, Step(mode="eval"))))
    if count == REWRITING and "rewritten" in domain.schedule:
        quiet = drawn[1].accumulate or drawn[1].mode == "eval"  # a caller may write them without a backward
        before = Step(mode=first.mode, backward="none" if quiet else "now")
        return (before, Step(mode=first.mode, rewritten=True))
    if count == FREEZING and "frozen" in domain.schedule:
        return (Step(), Step(frozen=True), *_possible(drawn[2:3]))
    return tuple(_possible(drawn[: count if count > 0 else 3]))


def _possible(steps: Sequence[Step]) -> Iterator[Step]:
    """Yield the steps without what nothing is there for yet, or what a backward to come forbids."""
    yield msgspec.structs.replace(steps[0], accumulate=False, rewritten=False)
    for before, step in pairwise(steps):
        late = before.backward == "deferred" and (step.frozen or step.rewritten)
        yield msgspec.structs.replace(step, frozen=False, rewritten=False) if late else step


def resized(
    steps: tuple[Step, ...],
    how: Resizing,
    byte: int,
    *,
    batches: Batches,
    spatial: Spatial,
    partition: Partition,
    domain: Domain,
) -> tuple[Step, ...]:
    """Return the steps, later ones of other sizes than `batches` and `spatial`."""
    if not how or "resized" not in domain.schedule:
        return steps
    found = [steps[0]]
    for number, step in enumerate(steps[1:], start=1):
        if (byte >> number) & 1 and number < len(steps) - 1:  # The sizes of the first come back.
            found.append(step)
            continue
        new_batches, new_spatial = _sizes(how, byte + number - 1, batches, spatial)
        if not _allowed(new_batches, partition, domain):
            new_batches = batches
        changed: dict[str, Batches | Spatial] = {}
        if new_batches != batches:
            changed["batches"] = new_batches
        if new_spatial != spatial:
            changed["spatial"] = new_spatial
        found.append(msgspec.structs.replace(step, **changed) if changed else step)
    return tuple(found)


def _sizes(how: Resizing, byte: int, batches: Batches, spatial: Spatial) -> tuple[Batches, Spatial]:
    world = len(batches)
    match how:
        case "fewer":
            return tuple(max(min(n, 1), n - 1 - byte % 3) for n in batches), spatial
        case "more":
            return tuple(n and n + 1 + byte % 3 for n in batches), spatial
        case "rotated":
            return tuple(batches[(rank + 1) % world] for rank in range(world)), spatial
        case "toggled":  # A rank without samples has some, or one of others has none.
            if not all(batches):
                return tuple(n or 1 + byte % 3 for n in batches), spatial
            return tuple(0 if rank == byte % world else n for rank, n in enumerate(batches)), spatial
        case "wider":
            return batches, tuple(
                (*sizes[:-1], sizes[-1] + 1 + byte % 2) if sizes else () for sizes in spatial
            )
        case _:
            return batches, spatial


def _allowed(batches: Batches, partition: Partition, domain: Domain) -> bool:
    """Return whether these batch sizes lie in the domain."""
    if ("equal" if len(set(batches)) == 1 else "uneven") not in domain.batches:
        return False
    groups = partition or (tuple(range(len(batches))),)
    some, whole = 0 in batches, any(not any(batches[rank] for rank in group) for group in groups)
    return not some or domain.empty == "all" or (domain.empty == "some" and not whole)

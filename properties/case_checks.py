"""Checks: what makes a case a possible one; whoever constructs another is told in one line.

Beside `properties.case`, which these are called from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from properties.case import Case

MAX_WORLD_SIZE = 64
MAX_CHANNELS = 4096
MAX_ELEMENTS = 2**28
MAX_STEPS = 8
MAX_OFFSET = 4096


class CaseError(ValueError):
    """The caller asked for something impossible; the message names what was expected and given."""


def shorten(data: bytes | str, most: int = 60) -> str:
    """Return `data` as a quoted text of about `most` characters, for a message of one line."""
    text = data[: 4 * most].decode("utf-8", "replace") if isinstance(data, bytes) else data
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def one_line(text: str, most: int = 300) -> str:
    """Return the beginning of `text` in one line of printable characters."""
    words = " ".join(text[: 2 * most].split())
    clean = "".join(char if char.isprintable() else "\ufffd" for char in words)
    return clean if len(clean) <= most else clean[: most - 3] + "..."


def _require(condition: bool, expected: str, **given: object) -> None:  # noqa: FBT001
    if not condition:
        values = ", ".join(f"{name}={one_line(repr(value), 200)}" for name, value in given.items())
        raise CaseError(f"Expected {expected}, but got {values}.")


def check(case: Case) -> None:
    """Check that `case` is possible.

    Raises:
        CaseError: If it is not.
    """
    _check_shapes(case)
    _check_groups(case)
    _check_options(case)
    _check_steps(case)


def _check_shapes(case: Case) -> None:
    world = len(case.batches)
    _require(1 <= world <= MAX_WORLD_SIZE, f"1 to {MAX_WORLD_SIZE} ranks", batches=case.batches)
    _require(1 <= len(case.steps) <= MAX_STEPS, f"1 to {MAX_STEPS} steps", steps=len(case.steps))
    _check_sizes(case.batches, case.spatial, world=world)
    for step in case.steps:
        if step.resized:
            _check_sizes(step.batches or case.batches, step.spatial or case.spatial, world=world)
            dims = {len(sizes) for sizes in (*case.spatial, *step.spatial)}
            _require(len(dims) == 1, "as many spatial sizes in each step", spatial=step.spatial)
    _require(1 <= case.channels <= MAX_CHANNELS, f"1 to {MAX_CHANNELS} channels", channels=case.channels)
    for step in (case.steps[0], *(step for step in case.steps if step.resized)):
        batches, spatial = step.batches or case.batches, step.spatial or case.spatial
        counts = [n * math.prod(spatial[rank % len(spatial)]) for rank, n in enumerate(batches)]
        elements = case.channels * sum(counts)
        _require(elements <= MAX_ELEMENTS, f"at most {MAX_ELEMENTS} elements", elements=elements)


def _check_sizes(batches: tuple[int, ...], spatial: tuple[tuple[int, ...], ...], *, world: int) -> None:
    _require(len(batches) == world, "a batch size for each rank", batches=batches, world_size=world)
    _require(all(0 <= n < 2**31 for n in batches), "batch sizes from 0 on", batches=batches)
    _require(
        len(spatial) in (1, world),
        "one tuple of spatial sizes for all ranks or one a rank",
        spatial=spatial,
        world_size=world,
    )
    dims = {len(sizes) for sizes in spatial}
    _require(len(dims) == 1 and max(dims) <= 3, "0 to 3 spatial sizes, as many on each rank", spatial=spatial)
    _require(
        all(1 <= s < 2**31 for sizes in spatial for s in sizes), "spatial sizes from 1 on", spatial=spatial
    )


def _check_groups(case: Case) -> None:
    if not case.groups:
        return
    members = [rank for group in case.groups for rank in group]
    _require(
        sorted(members) == list(range(case.world_size)) and all(case.groups),
        "disjoint, non-empty groups that cover the world",
        groups=case.groups,
        world_size=case.world_size,
    )
    _require(
        all(list(g) == sorted(g) for g in case.groups),
        "groups with their ranks in ascending order",
        groups=case.groups,
    )


def _check_options(case: Case) -> None:
    _require(
        case.param_dtype in ("float32", case.dtype),
        f"param_dtype float32 or {case.dtype}",
        param_dtype=case.param_dtype,
    )
    _require(
        not (case.dtype == "float64" and case.param_dtype != "float64"),
        "float64 parameters for a float64 input",
        param_dtype=case.param_dtype,
    )
    _require(math.isfinite(case.eps) and 0 <= case.eps <= 1e6, "a finite eps of 0 or more", eps=case.eps)
    _require(
        case.momentum is None or (math.isfinite(case.momentum) and 0 <= case.momentum <= 1),
        "a momentum from 0 to 1 or null",
        momentum=case.momentum,
    )
    _require(
        len(case.input_grad) in (0, case.world_size),
        "input_grad for no rank or for each",
        input_grad=case.input_grad,
    )
    _require(len(set(case.frozen)) == len(case.frozen), "each frozen parameter once", frozen=case.frozen)
    _require(len(case.specials) <= 16, "at most 16 specials", specials=len(case.specials))
    _require(
        all(min(s.rank, s.sample, s.channel, s.position) >= 0 for s in case.specials),
        "special indices from 0 on",
        specials=case.specials,
    )
    _require(0 <= case.rank_offset <= 2**20, "a rank_offset from 0 to 2^20", rank_offset=case.rank_offset)
    _require(0 <= case.seed < 2**64, "a seed from 0 to 2^64 - 1", seed=case.seed)
    exponents = (case.cotangent_exponent, case.affine_exponent, case.variance_exponent)
    _require(all(abs(k) <= 64 for k in exponents), "exponents from -64 to 64", exponents=exponents)
    dims = len(case.spatial[0])
    needs_4d = "channels_last" in (case.input_layout, case.cotangent_layout)
    _require(dims >= 2 or not needs_4d, "two or three spatial sizes for channels_last", spatial=case.spatial)
    offsets = (case.input_offset, case.cotangent_offset)
    _require(all(0 <= n <= MAX_OFFSET for n in offsets), f"offsets from 0 to {MAX_OFFSET}", offsets=offsets)


def _check_steps(case: Case) -> None:
    steps = case.steps
    _require(not steps[0].resized, "the sizes of the first step as those of the case", steps=steps[:1])
    for step, before in zip(steps, (None, *steps), strict=False):
        graph = step.grad_mode == "enabled"
        _require(
            graph or (step.backward == "none" and not step.recompute),
            "no backward and no recomputation without gradients",
            step=step,
        )
        _require(
            not (step.recompute and step.backward == "twice"),
            "one backward of a step that is recomputed",
            step=step,
        )
        _require(
            not (step.frozen and step.accumulate), "no accumulation onto what requires no gradient", step=step
        )
        late = before is not None and before.backward == "deferred"
        _require(
            not (late and (step.frozen or step.rewritten)),
            "parameters left as they are while a backward is still to come",
            step=step,
        )

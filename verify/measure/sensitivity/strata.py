"""Strata: cases of the ordinary generator by their number of values a channel, to measure sensitivity on."""

from __future__ import annotations

import random
from typing import NamedTuple

import msgspec

from properties.case import DTYPES, Case, Dtype, Step
from properties.domain import Domain
from properties.generation.strategies import random_case
from verify.report.stamp import digest

WORLD_SIZE = 2


class Stratum(NamedTuple):
    """Cases with `least` to `most` values a channel over all ranks."""

    name: str
    least: int
    most: int


STRATA = (
    Stratum("n <= 8", 2, 8),
    Stratum("9 to 64", 9, 64),
    Stratum("65 to 4096", 65, 4096),
    Stratum("near 1024", 897, 1152),
    Stratum("above 4096", 4097, 1 << 30),
)


def drawn(stratum: Stratum, dtype: Dtype, *, seed: int, count: int) -> tuple[Case, ...]:
    """Return `count` cases of the stratum: one training step on two ranks, all gradients asked for.

    Cases of the ordinary generator that lie in the stratum are kept and the others thrown away; schedules,
    special elements, wrong inputs, frozen parameters and probes are taken out of them. Parameters and
    buffers have the input's dtype.
    """
    source = random.Random(f"{stratum.name}, {dtype}, {seed}")
    domain = Domain(
        dtypes=(dtype,), param_dtypes=("own",), world_sizes=(WORLD_SIZE,), groups=("world",), eval=False
    )
    found: list[Case] = []
    while len(found) < count:
        case = random_case(source, domain, probes=False)
        if stratum.least <= case.total_of(tuple(range(WORLD_SIZE))) <= stratum.most:
            found.append(_plain(case))
    return tuple(found)


def _plain(case: Case) -> Case:
    return msgspec.structs.replace(
        case, steps=(Step(),), specials=(), wrong="", frozen=(), input_grad=(), probe=""
    )


def of_sensitivity() -> dict[str, str]:
    """Return what `docs/sensitivity.md` is made of: the cases of every stratum and dtype."""
    jobs = [(stratum, dtype) for stratum in STRATA for dtype in DTYPES]
    ids = (case.id for stratum, dtype in jobs for case in drawn(stratum, dtype, seed=1, count=5))
    return {"strata": digest(ids)}

"""Strategies: cases for Hypothesis, the same cases without Hypothesis, and the share a domain excludes.

A draw makes one choice, a string of bytes that `properties.generation.decoding` turns into a case:
Hypothesis pays for each choice, not for each byte, and still lowers every byte by itself when it minimises.
One string and not several: Hypothesis mutates examples by copying one choice over another of its kind, and
where the lengths differ the copy becomes zeros (two draws in five had no shape but the simplest).
"""

from __future__ import annotations

import functools
import random

import msgspec
from hypothesis import strategies as st

from properties.case import Case
from properties.domain import Domain
from properties.generation.byte_tables import Tables, tables_for
from properties.generation.decoding import TOTAL_BYTES, case_from
from properties.generation.membership import admits

RARE_WORLD_SIZES = (5, 8)
_SHARE_DRAWS = 2000


def cases(
    domain: Domain,
    *,
    world_sizes: tuple[int, ...] | None = None,
    probes: bool = True,
    conversion: bool = False,
    rare_world_sizes: tuple[int, ...] = RARE_WORLD_SIZES,
) -> st.SearchStrategy[Case]:
    """Return a strategy of cases in `domain`.

    Args:
        domain: What the subject supports.
        world_sizes: Numbers of ranks, in place of the domain's.
        probes: One case in sixteen asks for each probe, `repeatable` and `scaling`.
        conversion: Two in eighteen ask for the probe `conversion`.
        rare_world_sizes: Those among the numbers of ranks that are drawn rarely, about one in sixty each.

    Raises:
        DomainError: If no case lies in the domain.
    """
    tables = _tables(
        domain, world_sizes, probes=probes, conversion=conversion, rare_world_sizes=rare_world_sizes
    )
    choices = st.binary(min_size=TOTAL_BYTES, max_size=TOTAL_BYTES)
    return choices.map(lambda drawn: case_from(drawn, tables))


def random_case(
    source: random.Random,
    domain: Domain,
    *,
    world_sizes: tuple[int, ...] | None = None,
    probes: bool = True,
    rare_world_sizes: tuple[int, ...] = RARE_WORLD_SIZES,
) -> Case:
    """Return one case in `domain`, distributed as those of `cases`, without Hypothesis.

    Raises:
        DomainError: If no case lies in the domain.
    """
    tables = _tables(domain, world_sizes, probes=probes, rare_world_sizes=rare_world_sizes)
    return case_from(source.randbytes(TOTAL_BYTES), tables)


@functools.lru_cache(maxsize=16)
def excluded_share(domain: Domain) -> float:
    """Return the share of the cases of the default domain, as they are drawn, that `domain` excludes.

    Estimated from 2000 draws with a fixed seed (standard error at most 0.011). Numbers of ranks beyond the
    default domain's do not count.
    """
    source, default = random.Random(0), Domain()
    drawn = (random_case(source, default) for _ in range(_SHARE_DRAWS))
    return sum(not admits(domain, case) for case in drawn) / _SHARE_DRAWS


def _tables(
    domain: Domain,
    world_sizes: tuple[int, ...] | None,
    *,
    probes: bool,
    conversion: bool = False,
    rare_world_sizes: tuple[int, ...],
) -> Tables:
    if world_sizes is not None:
        domain = msgspec.structs.replace(domain, world_sizes=world_sizes)
    return tables_for(domain, probes=probes, rare_world_sizes=rare_world_sizes, conversion=conversion)

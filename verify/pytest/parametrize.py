"""The mark `@verify.parametrize(SPEC)`: a subject's campaign inside a user's own test suite.

    @verify.parametrize("my_kernels:SyncBN")
    def test_syncbn_is_batch_norm_over_the_whole_batch(check):
        check()

The function runs once a shard; shards draw disjoint cases, so that pytest-xdist may spread them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from verify.config import DEFAULT_MIN_CASES
from verify.pytest.shard import SHARDS, Check, Shard

Function = TypeVar("Function", bound=Callable[..., Any])


def parametrize(
    spec: str,
    *,
    shards: int = SHARDS,
    cases: int | None = None,
    seconds: float | None = None,
    seed: int | None = None,
    min_cases: int = DEFAULT_MIN_CASES,
    device: str = "cpu",
    backend: str | None = None,
    case_seconds: float | None = None,
) -> Callable[[Function], Function]:
    """Return a decorator that runs a test function with a `check` of each shard of the subject's campaign.

    Args:
        spec: module:factory, file.py:factory, or a built-in's short name.
        shards: Into how many items the campaign is cut.
        cases: Cases of the whole campaign (those of `verify run`).
        seconds: Seconds of the whole campaign.
        seed: Of the draws; that of the pytest run unless given.
        min_cases: Cases of the whole campaign that a verdict HOLDS needs.
        device: cpu or cuda.
        backend: gloo or nccl.
        case_seconds: Seconds that one small case may take (what the subject says, else 10).
    """
    if shards < 1:
        raise ValueError(f"Expected at least one shard, but got shards={shards}.")
    whole = Shard(
        spec=spec,
        number=0,
        shards=shards,
        cases=cases,
        seconds=seconds,
        seed=seed,
        min_cases=min_cases,
        device=device,
        backend=backend,
        case_seconds=case_seconds,
    )
    parts = [replace(whole, number=number) for number in range(shards)]
    parameters = [pytest.param(Check(shard), id=shard.title) for shard in parts]
    return pytest.mark.parametrize("check", parameters)

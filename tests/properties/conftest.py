"""A scene: an observation that agrees with its expectation in everything, to be spoilt by a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected, Interval
from properties.judge.catalogue import judge
from properties.observation import Observation, RankObservation, Tensor
from properties.verdict import Verdict

NUMPY = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "int64": np.int64}


def tensor(values: Any, dtype: str = "float32", **fields: Any) -> Tensor:
    """Return `values` as a rank would give them back in `dtype`; bfloat16 values must be exact in it."""
    if dtype == "bfloat16":
        bits = np.asarray(values, np.float32).view(np.uint32)
        return Tensor(dtype=dtype, array=(bits >> np.uint32(16)).astype(np.uint16), **fields)
    return Tensor(dtype=dtype, array=np.asarray(values, NUMPY[dtype]), **fields)


def interval(values: Any, bound: Any = 1e-6, *, overflows: bool = False, **fields: Any) -> Interval:
    """Return an interval around `values`, with one bound or one for each."""
    value = np.asarray(values, np.float64)
    return Interval(
        value=value,
        bound=np.broadcast_to(np.asarray(bound, np.float64), value.shape).copy(),
        overflows=np.full(value.shape, overflows),
        **fields,
    )


@dataclass
class Scene:
    """A case with an observation and an expectation that tests change before they ask for verdicts."""

    case: Case
    expected: Expected
    ranks: list[RankObservation]
    contract: Contract = field(default_factory=Contract)
    again: list[RankObservation] | None = None

    def put(self, rank: int, name: str, value: Tensor | None, *, again: bool = False) -> None:
        """Replace or remove a tensor of a rank."""
        ranks = self.again if again else self.ranks
        assert ranks is not None
        tensors = {key: held for key, held in ranks[rank].tensors.items() if key != name}
        if value is not None:
            tensors[name] = value
        ranks[rank] = msgspec.structs.replace(ranks[rank], tensors=tensors)

    def change(self, rank: int, **fields: Any) -> None:
        """Replace fields of a rank's observation."""
        self.ranks[rank] = msgspec.structs.replace(self.ranks[rank], **fields)

    def spoil(self, rank: int, name: str, index: tuple[int, ...], value: float) -> None:
        """Replace one element of a tensor."""
        held = self.ranks[rank].tensors[name]
        array = held.array.copy()
        array[index] = value
        self.put(rank, name, msgspec.structs.replace(held, array=array))

    def verdicts(self) -> dict[str, Verdict]:
        """Return every verdict by property."""
        again = Observation(ranks=tuple(self.again)) if self.again is not None else None
        observation = Observation(ranks=tuple(self.ranks), again=again)
        return {one.property: one for one in judge(self.case, observation, self.expected, self.contract)}

    def outcomes(self) -> dict[str, str]:
        """Return every outcome by property."""
        return {name: one.outcome.value for name, one in self.verdicts().items()}

    def violated(self) -> set[str]:
        """Return the violated properties."""
        return {name for name, outcome in self.outcomes().items() if outcome == "VIOLATED"}


def scene_of(case: Case) -> Scene:
    """Return a scene of `case` in which all tensors hold plausible numbers and nothing is wrong."""
    tensors: dict[str, dict[int, Interval]] = {}
    tracked: dict[str, dict[int, int]] = {}
    ranks = []
    for rank in range(case.world_size):
        held: dict[str, Tensor] = {}
        for k in range(len(case.steps)):
            for name, shape, dtype in _shapes(case, rank, k):
                source = np.random.default_rng([k, 0 if "running" in name else rank + 1])
                values = np.round(source.uniform(1.0, 2.0, shape), 2).astype(np.float16)
                exact = (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
                tensors.setdefault(name, {})[rank] = interval(exact, dtype=dtype)
                held[name] = tensor(exact, dtype, requires_grad=name.startswith("output"))
            if case.tracking:
                name = f"num_batches_tracked.{k}"
                tracked.setdefault(name, {})[rank] = k + 1
                held[name] = tensor(k + 1, "int64")
        ranks.append(RankObservation(rank=rank, ending="returned", tensors=held, digest=f"d{rank}"))
    digests = {rank: f"d{rank}" for rank in range(case.world_size)}
    return Scene(case, Expected(tensors=tensors, tracked=tracked, digests=digests), ranks)


def _shapes(case: Case, rank: int, k: int) -> list[tuple[str, tuple[int, ...], str]]:
    shape, channel = case.shape_of(rank), (case.channels,)
    found = [(f"output.{k}", shape, case.dtype), (f"grad_input.{k}", shape, case.dtype)]
    if case.has_weight:
        found.append((f"grad_weight.{k}", channel, case.param_dtype))
    if case.has_bias:
        found.append((f"grad_bias.{k}", channel, case.param_dtype))
    if case.tracking:
        found += [(f"running_{one}.{k}", channel, case.param_dtype) for one in ("mean", "var")]
    return found


@pytest.fixture
def scene() -> Callable[..., Scene]:
    """Return a function that makes the scene of a case, given by its fields or whole."""

    def make(case: Case | None = None, **fields: Any) -> Scene:
        return scene_of(case or Case(**fields))

    return make


@pytest.fixture(name="tensor")
def tensor_fixture() -> Callable[..., Tensor]:
    """Return the function `tensor`."""
    return tensor


@pytest.fixture(name="interval")
def interval_fixture() -> Callable[..., Interval]:
    """Return the function `interval`."""
    return interval

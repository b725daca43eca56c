"""Compiled subjects: they keep their group, are counted, and dynamo leaves alone what is ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from properties.case import Case, Step
from tests.verify.ranks.real import spec
from verify.ranks.pool import LostGroup, RankPool
from verify.ranks.worker import compiling
from verify.ranks.worker.process_state import _Namespace


class Owner:
    """Stands for `torch.nn.Module`."""

    def __init__(self) -> None:
        self.made = True

    def call(self) -> None:
        """Do nothing."""


@pytest.fixture(autouse=True)
def _owner_as_it_was() -> Iterator[None]:
    before = dict(vars(Owner))
    yield
    for name in [name for name in vars(Owner) if name not in before]:
        delattr(Owner, name)
    for name in ("__init__", "call"):
        setattr(Owner, name, before[name])


def replacement(module: str) -> object:
    def replaced(self: object) -> None:
        del self

    replaced.__module__ = module
    return replaced


def test_what_dynamo_puts_in_place_of_a_function_is_no_change_and_what_another_does_is() -> None:
    namespace = _Namespace(Owner)
    assert not namespace.changed()
    Owner.__init__ = replacement("torch._dynamo.mutation_guard")  # type: ignore[method-assign,assignment]
    Owner.___needs_generation_tag_patch = False  # type: ignore[attr-defined]
    assert not namespace.changed()
    assert not namespace.changed(), "it is what must stay now"
    Owner.call = replacement("mine")  # type: ignore[method-assign,assignment]
    assert namespace.changed()


def test_a_change_beside_those_of_dynamo_is_not_hidden_by_them() -> None:
    namespace = _Namespace(Owner)
    Owner.__init__ = replacement("torch._dynamo.mutation_guard")  # type: ignore[method-assign,assignment]
    Owner.gained = replacement("torch._dynamics")  # type: ignore[attr-defined]
    assert namespace.changed()
    assert namespace.changed(), "a change stays one"


@pytest.fixture
def dynamo(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Modules that stand for dynamo's, as far as they are looked at."""
    config, metrics = ModuleType("config"), ModuleType("utils")
    config.recompile_limit, config.accumulated_recompile_limit = 8, 10**9  # type: ignore[attr-defined]
    metrics.compilation_time_metrics = {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch._dynamo.config", config)
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", metrics)
    return SimpleNamespace(config=config, times=metrics.compilation_time_metrics)


def test_limits_of_recompilation_are_raised_and_never_lowered(dynamo: SimpleNamespace) -> None:
    compiling.raise_limits()
    assert dynamo.config.recompile_limit == compiling.RECOMPILE_LIMIT
    assert dynamo.config.accumulated_recompile_limit == 10**9


def test_compilations_are_counted_with_the_backwards_that_compile_when_they_first_run(
    dynamo: SimpleNamespace,
) -> None:
    assert compiling.compilations() == compiling.Compilations()
    dynamo.times |= {"_compile.compile_inner": [1.0, 2.0], "inner": [0.5]}
    before = compiling.compilations()
    dynamo.times["_compile.compile_inner"].append(4.0)
    dynamo.times["backward._backward_impl"] = [8.0]
    assert compiling.compilations().since(before) == compiling.Compilations(1, 12.0)
    dynamo.times.clear()
    dynamo.times["_compile.compile_inner"] = [0.25]
    assert compiling.compilations().since(before) == compiling.Compilations(1, 0.25), "counted anew"


def test_without_dynamo_nothing_is_counted_and_nothing_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config", "utils"):
        monkeypatch.setitem(sys.modules, f"torch._dynamo.{name}", None)
    compiling.raise_limits()
    assert compiling.compilations() == compiling.Compilations()


@pytest.mark.timeout(300)
def test_a_compiled_subject_keeps_its_group_and_says_what_it_compiled() -> None:
    losses: list[LostGroup] = []
    cases = [
        Case(batches=(3,), channels=4, spatial=((2,),)),
        Case(batches=(3,), channels=4, spatial=((2,),), seed=5),
        Case(batches=(5,), channels=3, steps=(Step(), Step(mode="eval"))),
    ]
    with RankPool(timeout=60.0, on_lost=losses.append) as pool:
        seen = [pool.run(spec("compiled"), case) for case in cases]
    assert [[ours.ending for ours in one.ranks] for one in seen] == [["returned"]] * len(cases)
    assert losses == []
    first, again, *_ = (one.ranks[0] for one in seen)
    assert first.compiled > 0
    assert 0.0 < first.compile_seconds <= first.seconds
    assert again.compiled == 0, "another case of the same shape runs what is compiled"
    assert [entry.op for entry in first.ledger] == ["all_reduce"]
    assert sum(one.ranks[0].compiled for one in seen) > first.compiled

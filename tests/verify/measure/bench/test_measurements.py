"""Measurements on real ranks and processes, as small as they can be."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from properties.case import Case
from properties.expectation.expected import Expected
from verify.engine.examiner import machinery
from verify.errors import RankError
from verify.measure.bench.child import last_json, run_child
from verify.measure.bench.figure import Effort
from verify.measure.bench.figures import draw, harness, memory, parallel, spawn
from verify.measure.bench.figures.growth import ELEMENTS, WORLD_SIZES, elements_case, exponent, ranks_case
from verify.measure.bench.figures.large import large_case
from verify.measure.bench.timed_campaign import bench_run

QUICK = Effort(quick=True)


@pytest.fixture
def no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw and run cases, but compute and judge nothing: what is compiled would take most of the time."""
    parts = dataclasses.replace(
        machinery(),
        expect=lambda case, contract, grade, *, device: Expected(
            tensors={}, tracked={}, refusals={}, digests={}, grade=grade
        ),
        judge=lambda *args, **more: (),
    )
    monkeypatch.setattr("verify.engine.engine.machinery", lambda **_: parts)


def ignore(text: str) -> None:
    assert text


def elements(case: Case) -> int:
    return case.channels * sum(case.count_of(rank) for rank in range(case.world_size))


@pytest.mark.usefixtures("no_reference")
def test_a_block_accounts_for_every_case_and_times_those_that_returned() -> None:
    with bench_run() as run:
        block = run.verified("aggregated", 12, seed=3, world_size=2)
        assert len(block.cases) + block.left_out == 12
        assert {case.world_size for case in block.cases} == {2}
        assert min(block.seconds) > 0
        assert block.cpu > 0
        assert 0 < run.bare("aggregated", block.cases).seconds < sum(block.seconds)


@pytest.mark.usefixtures("no_reference")
def test_a_refused_case_is_not_timed() -> None:
    with bench_run() as run, pytest.raises(RankError, match="to return"):
        run.once("aggregated", Case(batches=(1, 0)))


@pytest.mark.costly
@pytest.mark.usefixtures("no_reference")
def test_the_harness_ratio_is_the_worst_of_its_places() -> None:
    (figure,) = harness.measure(QUICK, ignore)
    ratios = [told["ratio"] for told in figure.details.values()]
    assert len(ratios) == len(harness.SUBJECTS) * len(harness.WORLD_SIZES)
    assert figure.value == max(ratios) > 0


def test_a_draw_costs_cpu_time() -> None:
    (figure,) = draw.measure(QUICK, ignore)
    assert 0.01 < figure.value < 100


@pytest.mark.costly
def test_a_process_per_rank_test_takes_as_long_as_starting_processes_does() -> None:
    assert spawn.process_per_rank(spawn.CASE) > 0.5


@pytest.mark.costly
def test_a_process_per_rank_test_that_fails_is_told() -> None:
    with pytest.raises(RankError, match=r"end with 0, but got \[1"):
        spawn.process_per_rank(Case(batches=(1, 0)))


@pytest.mark.costly
def test_what_was_compiled_is_not_compiled_again(tmp_path: Path) -> None:
    words = ("-m", "verify.measure.bench.figures.compilations", "2")
    first, again = (
        last_json(run_child(words, environment={"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}))
        for _ in range(2)
    )
    assert first["cases"] == again["cases"] == 2
    assert first["misses"] >= 1
    assert again["misses"] == 0
    assert again["hits"] <= first["misses"] + first["hits"]  # what is kept as an executable is not asked for


@pytest.mark.costly
@pytest.mark.usefixtures("no_reference")
def test_memory_is_that_of_the_parent_and_four_ranks() -> None:
    seen = memory.watch(4)
    assert seen["cases"] == 4
    assert len(seen["peaks"]) == 2
    assert all(300e6 < peak < 10e9 for peak in seen["peaks"])


@pytest.mark.costly
def test_the_suite_of_the_parallel_gain_runs_under_pytest(tmp_path: Path) -> None:
    suite = tmp_path / "test_subject.py"
    suite.write_text(parallel.SUITE.format(subject="aggregated", cases=4))
    ended = run_child(parallel.pytest_words(suite, "0"))
    assert "4 passed" in ended.output
    assert ended.cpu > 0.5


def test_a_child_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(RankError, match=r"got 3: .*farewell"):
        run_child(("-c", "import sys; print('farewell', file=sys.stderr); sys.exit(3)"))


def test_the_exponent_of_a_power_is_its_power() -> None:
    sizes = [10.0, 100.0, 1000.0]
    assert math.isclose(exponent(sizes, [5 * size**0.7 for size in sizes]), 0.7)
    assert math.isclose(exponent(sizes, [2.0, 2.0, 2.0]), 0.0)


def test_cases_have_the_sizes_that_they_are_named_by() -> None:
    assert [elements(elements_case(size)) for size in ELEMENTS] == list(ELEMENTS)
    assert [ranks_case(size).world_size for size in WORLD_SIZES] == list(WORLD_SIZES)
    assert abs(elements(large_case(10_000_000)) / 1e7 - 1) < 0.02
    assert large_case(10_000_000).world_size == 2

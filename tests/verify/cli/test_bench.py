"""The command `bench`, with made-up measurements: its table, its files, its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from verify.cli import bench as command
from verify.cli.main import main
from verify.measure.bench import history
from verify.measure.bench.figure import Effort, Figure, Measure, Tell
from verify.measure.bench.registry import MODULES, measure_of

GOOD = Figure(name="good", value=1.0, target=1.5, details={"ranks": {"cases_a": 3, "ms": 2.5}})
BAD = Figure(name="bad", value=2.0, target=3.0, sense="at least", unit="ms")
Outcome = Figure | BaseException


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Have names of the catalogue measured as told, and the history in a folder of its own."""
    monkeypatch.setattr(history, "FILE", tmp_path / "history.jsonl")
    monkeypatch.setattr(command, "FILE", tmp_path / "history.jsonl")

    def use(**outcomes: Outcome) -> None:
        def fake(name: str) -> Measure:
            def measure(effort: Effort, tell: Tell) -> tuple[Figure, ...]:
                outcome = outcomes[name]
                if isinstance(outcome, BaseException):
                    raise outcome
                return (outcome,)

            return measure

        monkeypatch.setattr(command, "measure_of", fake)

    return use


def test_all_met_is_0_and_one_not_met_is_1(
    measured: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    measured(harness=GOOD, draw=BAD)
    assert main(["bench", "harness"]) == 0
    assert main(["bench", "harness", "draw"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "good                                  1  at most 1.5      met" in lines
    assert "    ranks: cases a 3, ms 2.5" in lines
    assert "bad                                   2  at least 3 ms    NOT MET" in lines
    assert lines[-1].startswith("1 of 2 targets met, in ")


def test_a_figure_that_cannot_be_measured_is_70_and_the_others_go_on(
    measured: Callable[..., None], tmp_path: Path
) -> None:
    measured(harness=RuntimeError("no ranks"), draw=GOOD)
    file = tmp_path / "bench.json"
    assert main(["bench", "harness", "draw", "--json", str(file)]) == 70
    data = json.loads(file.read_text())
    assert [(one["name"], one["met"]) for one in data["figures"]] == [("good", True)]
    assert "no ranks" in data["failed"]["harness"]
    assert data["environment"]["cores"] >= 1


def test_an_interrupt_is_130_with_what_was_measured(
    measured: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(harness=GOOD, draw=KeyboardInterrupt(), share=BAD)
    file = tmp_path / "bench.json"
    assert main(["bench", "harness", "draw", "share", "--json", str(file)]) == 130
    assert [one["name"] for one in json.loads(file.read_text())["figures"]] == ["good"]
    assert "1 of 1 targets met" in capsys.readouterr().out


def test_the_history_is_written_only_when_asked_for_and_a_worse_figure_is_told(
    measured: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "history.jsonl"
    monkeypatch.setattr(command, "read", lambda: history.read(path))
    monkeypatch.setattr(command, "append", lambda entry: history.append(entry, path))
    measured(harness=GOOD)
    main(["bench", "harness"])
    assert not path.exists()
    main(["bench", "harness", "--record-history"])
    assert len(history.read(path)) == 1
    measured(harness=Figure(name="good", value=1.4, target=1.5))
    assert main(["bench", "harness"]) == 0
    out = capsys.readouterr().out
    assert "    WORSE by 40% than 1, recorded on " in out
    assert out.splitlines()[-1].endswith("; worse than recorded: good")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "Expected figures among harness, draw, "),
        (["--record-history", "--quick"], "Expected --record-history without --quick"),
        (["--json", "/nowhere/at/all.json"], "Expected --json to be writable"),
        (["--memory-cases", "1"], "Expected an integer of 2 or more"),
    ],
)
def test_a_mistake_is_64(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 64
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", MODULES)
def test_every_name_has_a_measurement_and_is_in_the_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(measure_of(name))
    main(["bench", "--help"])
    assert name in capsys.readouterr().out.partition("exit codes")[0]

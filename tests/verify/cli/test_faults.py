"""The command `faults`: what it judges, what it writes, how it ends; two faults on real ranks."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from properties.judge.catalogue import PROPERTIES
from tests.power.test_own_file import processes_with
from tests.verify.measure.power.samples import RIGHT, acquitted, card, caught, units
from verify import errors
from verify.cli import faults as command
from verify.cli.faults import judge
from verify.cli.main import main
from verify.cli.parser import parse
from verify.errors import UsageError
from verify.faults.cards import cards, right_cards
from verify.measure.power.score import Score
from verify.measure.power.work_units import QUICK_TRIES, FaultUnit, RightUnit, right_units
from verify.ranks.zygote import VARIABLE

ROOT = Path(__file__).parents[3]


def asked(line):
    """Return the units of a command line: of faults, of right subjects."""
    made = list(command.units(parse(["faults", *line.split()])))
    return [u for u in made if isinstance(u, FaultUnit)], [u for u in made if isinstance(u, RightUnit)]


def test_by_default_the_whole_catalogue_is_judged_on_five_seeds_with_the_budget_of_run():
    faults, right = asked("")
    assert [(unit.card, unit.seed) for unit in faults] == [(c, seed) for seed in range(1, 6) for c in cards()]
    assert {(unit.effort.cases, unit.effort.seconds) for unit in faults} == {(500, None)}
    assert {unit.card for unit in right} == set(right_cards())
    assert sum(unit.cases for unit in right) == command.RIGHT_CASES


def test_the_quick_version_has_one_seed_and_little_minimising():
    faults, right = asked("--quick")
    assert {(unit.seed, unit.effort.tries_total) for unit in faults} == {(1, QUICK_TRIES)}
    assert sum(unit.cases for unit in right) == command.QUICK_RIGHT_CASES


def test_names_restrict_the_faults_and_leave_the_right_subjects_out():
    faults, right = asked("tutorial --seeds 2 --cases 7")
    assert {unit.card.family for unit in faults} == {"tutorial"}
    assert {unit.seed for unit in faults} == {1, 2}
    assert {(unit.effort.cases, unit.effort.seconds) for unit in faults} == {(7, None)}
    assert right == []


def test_right_subjects_are_judged_alone_where_only_they_are_named():
    faults, right = asked("right written --domain values=constant")
    assert faults == []
    assert {unit.card for unit in right} == set(right_cards())
    assert sum(unit.cases for unit in right) == command.RIGHT_CASES
    assert {unit.domain["values"] for unit in right} == {"constant"}
    (one,) = asked("SumsRsqrt --right 9")[1]
    assert (one.card.spec, one.cases) == ("verify.faults.written:SumsRsqrt", 9)


def test_an_unknown_domain_of_right_subjects_is_a_wrong_use():
    with pytest.raises(UsageError, match="constants"):
        asked("right --domain values=constants")
    with pytest.raises(UsageError, match="right subjects with --domain"):
        asked("tutorial --domain values=constant")


def test_the_right_subjects_can_be_given_any_number_of_cases():
    _, right = asked("tutorial --right 100000")
    assert sum(unit.cases for unit in right) == 100_000


class ProcessPool:
    """Yields what is done, and is interrupted then."""

    def __init__(self, *done):
        self._done = done

    def work(self, units):
        yield from self._done
        raise KeyboardInterrupt


def test_an_interrupt_is_told_with_what_was_judged():
    made = (*units(card("a"), card("b"), seeds=2), *right_units(RIGHT, cases=2))
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        judge(Score(made), ProcessPool(caught(made[0]), caught(made[1]), caught(made[2])), stream)
    told = stream.getvalue()
    assert "a          1     2/2" in told
    assert "b          1     1/2" in told
    assert "2 faults of 2, 2 seeds: caught 3/3 (100.0%)" in told
    assert "Not met: 3 of 6 units were not judged" in told


def test_accusations_are_told_with_their_share():
    made = tuple(right_units(RIGHT, cases=40))
    stream = io.StringIO()
    judge(Score(made), _quiet(acquitted(made[0]), acquitted(made[1], accused=3)), stream)
    assert "right subjects: 3 of 40 cases accused" in stream.getvalue()
    assert "Not met: a right subject is accused." in stream.getvalue()


def _quiet(*done):
    class Quiet:
        def work(self, units):
            yield from done

    return Quiet()


def test_sensitivity_is_another_modules_work(monkeypatch):
    from types import ModuleType

    module = ModuleType("verify.measure.sensitivity.sweep")
    module.sensitivity_command = lambda arguments: 7 if arguments.seeds == 2 else 8
    monkeypatch.setitem(sys.modules, "verify.measure.sensitivity.sweep", module)
    assert main(["faults", "--sensitivity", "--seeds", "2"]) == 7


@pytest.mark.timeout(300)
@pytest.mark.costly
def test_two_faults_and_the_right_subjects_on_real_ranks(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SYNCBN_VERIFY_DATA", str(tmp_path))
    names = ["tutorial-detached-statistics", "tutorial-no-running-buffers"]
    files = ["--json", str(tmp_path / "f.json"), "--table", str(tmp_path / "f.md")]
    line = ["faults", *names, "--seeds", "1", "--cases", "40", "--right", "16", "--workers", "2", *files]
    assert main(line) == errors.OK
    told = capsys.readouterr().out
    assert (
        "2 faults of 2, 1 seed: caught 2/2 (100.0%), with all the properties that must catch them 2" in told
    )
    assert "right subjects: 0 of 16 cases accused" in told
    assert told.endswith("Every target is met.\n")
    found = json.loads((tmp_path / "f.json").read_text("utf-8"))
    assert [fault["id"] for fault in found["faults"]] == names
    for fault in found["faults"]:
        (seed,) = fault["seeds"]
        assert set(fault["caught_by"]) <= set(seed["properties"]) <= PROPERTIES.keys()
        assert 1 <= seed["cases"] <= 40
        assert seed["smallest"]["ranks"] <= 2
        assert seed["smallest"]["channels"] == 1
    assert sum(right["cases"] for right in found["right"]) == 16
    assert f"| `{names[0]}` | 5 |" in (tmp_path / "f.md").read_text("utf-8")


@pytest.mark.timeout(280)
def test_ctrl_c_tells_what_was_judged_and_leaves_nothing_behind(tmp_path):
    mark = f"syncbn-verify-test-faults-{os.getpid()}"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "verify",
            "faults",
            "tutorial",
            "--workers",
            "1",
            "--json",
            str(tmp_path / "f"),
        ],
        cwd=ROOT,
        # Without the zygote of all tests: the server that it forks would not show the mark in /proc.
        env={**os.environ, VARIABLE: "", "FAULTS_MARK": mark, "SYNCBN_VERIFY_DATA": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(processes_with(mark)) < 3 and time.monotonic() < deadline:  # parent, worker, server
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    told, complained = process.communicate(timeout=140)
    assert process.returncode == errors.INTERRUPTED
    assert "were not judged" in told
    assert complained == "interrupted\n"
    assert json.loads((tmp_path / "f").read_text("utf-8"))["finished"] is False
    assert processes_with(mark) == []

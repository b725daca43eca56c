"""The command line: every mistake is one line and exit code 64; importing it stays light."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from verify import errors
from verify.cli.main import main
from verify.cli.parser import LATER, parse
from verify.config import pairs
from verify.errors import UsageError

HEAVY = ("torch", "jax", "hypothesis", "numpy.testing", "rich")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "a command among"),
        (["sing"], "invalid choice"),
        (["run", "--cases", "none"], "integer of 1 or more"),
        (["run", "--cases", "0"], "integer of 1 or more"),
        (["run", "--min-cases", "0"], "integer of 1 or more"),
        (["run", "--seconds", "-1"], "seconds above 0"),
        (["run", "--seconds", "nan"], "seconds above 0"),
        (["run", "--seed", "-1"], "integer of 0 or more"),
        (["run", "--seed", str(2**64)], "got seed=18446744073709551616"),
        (["run", "--cases", str(2**63)], "got cases=9223372036854775808"),
        (["run", "--case-seconds", "5000000"], "got case_seconds=5000000"),
        (["run", "--grade", "D"], "invalid choice"),
        (["run", "--device", "tpu"], "invalid choice"),
        (["run", "--backend", "nccl"], "--device cuda"),
        (["run", "--domain", "dtypes"], "key=value"),
        (["run", "--domain", "dtypes=float32", "--domain", "dtypes=float16"], "twice"),
        (["run", "--unknown"], "unrecognized"),
        (["run", "--subj", "local"], "unrecognized"),
        (["run", "--properties", "backwards", "--subject", "local"], "properties among"),
        (["replay"], "a case, or --all"),
        (["replay", "{}", "--all", "."], "not both"),
        (["replay", "--all", "/nowhere"], "has none"),
        (["replay", "--all", ".", "--times", "2"], "with one case, but got --all"),
        (["replay", "{}", "--subject", "local", "--after", "[]"], "but got"),
        (["replay", "{}", "--subject", "local", "--times", "0"], "--times"),
        (["replay", "feedfeedfeed"], "--subject"),
        (["replay", "feedfeedfeed", "--subject", "local"], "id of a kept case"),
        (["replay", '{"batches":[]}', "--subject", "local"], "1 to 64 ranks"),
        (["faults", "--seeds", "0"], "integer of 1 or more"),
        (["faults", "no-such-fault"], "right subjects, or families among"),
        (["faults", "--json", "/nowhere/at/all.json"], "--json to be writable"),
        *([[name], "not in this version yet"] for name in LATER),
    ],
)
def test_a_bad_line_is_told_in_one_line_and_ends_with_64(
    argv: Sequence[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == errors.USAGE
    told = capsys.readouterr().err
    assert expected in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "argv", [["--help"], ["run", "--help"], ["replay", "--help"], ["faults", "--help"], ["doctor", "--help"]]
)
def test_help_documents_the_exit_codes(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == errors.OK
    text = capsys.readouterr().out
    for code in ("0 ", "1 ", "2 ", "64", "70", "130"):
        assert f"\n  {code}" in text


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(main.__globals__["_COMMANDS"], "doctor", interrupted)
    assert main(["doctor"]) == errors.INTERRUPTED


def test_an_internal_error_ends_with_70_and_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(main.__globals__["_COMMANDS"], "doctor", broken)
    assert main(["doctor"]) == errors.INTERNAL
    assert "ZeroDivisionError: oops" in capsys.readouterr().err


def test_the_options_of_run() -> None:
    line = (
        "run --subject a:B --subject local --device cuda --backend nccl --world-sizes 1,2 --cases 5 "
        "--seconds 2.5 --min-cases 7 --seed 3 --grade B --domain dtypes=float32 --contract momentum=decay "
        "--properties forward,ending --case-seconds 60 --fail-fast --record r --json f -v "
        "--known"
    )
    found = vars(parse(line.split()))
    assert found == {
        "command": "run",
        "subject": ["a:B", "local"],
        "device": "cuda",
        "backend": "nccl",
        "world_sizes": "1,2",
        "cases": 5,
        "min_cases": 7,
        "seconds": 2.5,
        "seed": 3,
        "grade": "B",
        "domain": ["dtypes=float32"],
        "contract": ["momentum=decay"],
        "properties": ("forward", "ending"),
        "case_seconds": 60.0,
        "fail_fast": True,
        "record": "r",
        "resume": False,
        "json": "f",
        "verbose": True,
        "known": True,
    }


def test_pairs_may_hold_an_equals_sign() -> None:
    assert pairs(["a=b=c"], "--domain") == {"a": "b=c"}
    with pytest.raises(UsageError):
        pairs(["=b"], "--domain")


def imported_by(statement: str) -> set[str]:
    """Return the heavy modules that `statement` imports, in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import verify",
        "import verify.cli.main",
        "import verify.pytest.plugin",
        "from verify import parametrize; parametrize('local')",
        "import verify.cli.main; verify.cli.main.parse(['run', '--subject', 'local'])",
        "import verify.ranks.pool",
    ],
)
def test_a_light_import_is_light(statement: str) -> None:
    assert not imported_by(statement) - {"numpy.testing", "rich"}


@pytest.mark.parametrize(
    "module",
    [
        "verify.cli.run",
        "verify.cli.replay",
        "verify.cli.doctor",
        "verify.cli.main_job",
        "verify.measure.power.pool_worker",
    ],
)
def test_the_parent_never_imports_torch(module: str) -> None:
    assert "torch" not in imported_by(
        f"import {module}\nfrom verify.engine.examiner import machinery; machinery()"
    )


def test_the_test_of_light_imports_sees_heavy_ones() -> None:
    assert imported_by("import hypothesis") == {"hypothesis"}


@pytest.mark.parametrize(
    "words",
    [
        ("--subject", "no:thing"),
        *(
            pytest.param(words, marks=pytest.mark.costly)
            for words in (("--domain", "dims=77"), ("--resume",), ("--properties", "nonsense"))
        ),
    ],
)
def test_a_bad_argument_leaves_nothing_of_the_server_that_was_started(tmp_path, words) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "verify", "run", *words],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (64, 1)
    assert list(tmp_path.iterdir()) == []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert str(tmp_path) not in process.read_bytes().decode("utf-8", "replace")

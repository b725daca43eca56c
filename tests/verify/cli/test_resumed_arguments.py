"""The command line of a run that goes on: what it may change of the record's, and what it may not."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.verify.recorded import ARGUMENTS
from verify import errors
from verify.cli.main import main
from verify.cli.parser import parse
from verify.cli.resume import merged
from verify.cli.run import config_from
from verify.errors import UsageError


def line(text: str) -> Namespace:
    words = ["run", "--record", "r", "--resume", *text.split()]
    namespace = parse(words)
    namespace.words = words
    return namespace


def test_an_option_that_is_not_given_is_the_records() -> None:
    before = msgspec.structs.replace(ARGUMENTS, domain=("dims=4",), grade="B", fail_fast=True)
    found = merged(line("--json f"), before)
    assert (found.json, found.record, found.resume) == ("f", "r", True)
    assert config_from(found) == before


@pytest.mark.parametrize(
    ("before", "given", "cases", "seconds"),
    [
        ((40, None), "", 40, None),
        ((40, None), "--cases 40", 40, None),
        ((40, None), "--cases 90", 90, None),
        ((None, 9.0), "--seconds 10", None, 10.0),
        ((40, 9.0), "--seconds=10", 40, 10.0),
        ((None, None), "", None, None),
        ((None, None), "--cases 600", 600, None),
        ((None, None), "--seconds 2000", None, 2000.0),
    ],
)
def test_a_budget_may_be_raised(before: Any, given: str, cases: Any, seconds: Any) -> None:
    found = merged(line(given), msgspec.structs.replace(ARGUMENTS, cases=before[0], seconds=before[1]))
    assert (found.cases, found.seconds) == (cases, seconds)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--seed 4", "--seed to be the record's, 3, but got 4"),
        ("--subject local", "--subject to be the record's, fake:Subject, but got local"),
        ("--device cuda", "--device"),
        ("--grade A", "--grade to be the record's, none"),
        ("--domain dims=4", "--domain"),
        ("--fail-fast", "--fail-fast"),
        ("--world-sizes 2", "--world-sizes"),
        ("--properties forward", "--properties"),
        ("--cases 39", "--cases of the record's 40 or more, but got 39"),
        ("--seconds 50", "no --seconds"),
    ],
)
def test_an_option_that_contradicts_the_record_is_refused(given: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        merged(line(given), ARGUMENTS)
    assert "\n" not in str(caught.value)


def test_what_is_repeated_is_no_contradiction() -> None:
    before = msgspec.structs.replace(
        ARGUMENTS, properties=("forward", "ending"), domain=("dims=4", "eval=no")
    )
    again = "--seed 3 --subject fake:Subject --properties ending,forward --domain eval=no --domain dims=4"
    assert config_from(merged(line(again), before)) == before


def test_a_record_of_nothing_begins_a_run_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "record"
    words = ["run", "--record", str(folder), "--resume"]
    assert main([*words, "--subject", "./gone.py:X", "--seed", "7"]) == errors.USAGE
    said = capsys.readouterr()
    assert "holds no run; this one begins it" in said.out
    assert "gone.py does not exist" in said.err
    # Begun with another version of torch, as far as the record knows; the subject and the seed are its own.
    path = folder / "record.jsonl"
    opening = json.loads(path.read_text("utf-8"))
    opening["versions"]["torch"] = "1.0\x1b[2J"
    path.write_text(json.dumps(opening) + "\n", "utf-8")
    assert main(words) == errors.USAGE
    said = capsys.readouterr()
    assert "begun with torch 1.0\ufffd[2J, going on with " in said.out
    assert "0 cases judged before" in said.out
    assert "seed 7" in said.out
    assert "gone.py does not exist" in said.err


def test_resuming_needs_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--resume"]) == errors.USAGE
    assert "Expected --record DIR with --resume" in capsys.readouterr().err

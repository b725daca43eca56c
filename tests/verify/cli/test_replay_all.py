"""`replay --all`: which cases it runs on what, and what it makes of their outcomes."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from properties.case import Case
from properties.case_checks import CaseError
from properties.verdict import Discrepancy, Outcome, holds, violated
from tests.verify.recorded import ARGUMENTS
from verify import errors
from verify.cli.main import main
from verify.cli.parser import parse
from verify.cli.replay_all import _as_recorded, exit_code, from_files, from_record, summary
from verify.errors import UsageError
from verify.record.kept_cases import keep_case
from verify.record.previous_run import PreviousRun, read
from verify.record.recall import Place
from verify.record.writing import Record
from verify.strict_json import plain
from verify.trial import Trial

CASES = tuple(Case(batches=(1, size)) for size in (1, 2, 3))


FOUND = (Discrepancy(quantity="output.0", rank=0, mismatched_ranks=(0,)),)


def recorded(folder: Path, arguments: object = ARGUMENTS) -> PreviousRun:
    """Return the past of a record of two subjects: one fails with two cases, the other with one."""
    record = Record(folder, {"arguments": plain(arguments)})
    for subject, failing in (("a:A", CASES[:2]), ("b:B", CASES[1:2])):
        record._subject = subject
        for case in CASES:
            verdict = violated("forward", FOUND) if case in failing else holds("forward")
            for role in ("drawn", "minimal") if case in failing else ("drawn",):
                record.keep(Trial(case=case, verdicts=(verdict,)), Place(role=role))  # type: ignore[arg-type]
    past = read(record.journal)
    record.close()
    assert past is not None
    return past


def test_a_record_gives_its_failing_cases_once_each_with_their_subjects(tmp_path: Path) -> None:
    past = recorded(tmp_path)
    assert from_record(past, None) == {"a:A": CASES[:2], "b:B": CASES[1:2]}
    assert from_record(past, "b:B") == {"b:B": CASES[1:2]}
    assert from_record(past, "./other.py:C") == {"./other.py:C": CASES[:2]}


def test_the_arguments_are_the_records_unless_given(tmp_path: Path) -> None:
    before = msgspec.structs.replace(ARGUMENTS, grade="B", contract=("momentum=decay",))
    past = recorded(tmp_path, before)

    def settled(*words: str) -> Namespace:
        line = ["replay", "--all", "DIR", *words]
        return _as_recorded(Namespace(**vars(parse(line)), words=line), past)

    as_before = settled()
    assert (as_before.grade, as_before.contract) == ("B", ["momentum=decay"])
    other = settled("--grade", "C", "--contract", "running_var=biased")
    assert (other.grade, other.contract) == ("C", ["running_var=biased"])


def test_a_folder_of_case_files_needs_a_subject(tmp_path: Path) -> None:
    for case in CASES:
        keep_case(case, tmp_path)
    found = from_files(tmp_path, "local")
    assert sorted(case.id for case in found["local"]) == sorted(case.id for case in CASES)
    assert found == from_files(tmp_path / "cases", "local")
    with pytest.raises(UsageError, match="--subject"):
        from_files(tmp_path, None)
    (tmp_path / "spoilt.json").write_text("{]")
    with pytest.raises(CaseError):
        from_files(tmp_path, "local")


def test_a_folder_without_either_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has none"):
        from_files(tmp_path, "local")


@pytest.mark.parametrize(
    ("outcomes", "internal", "code"),
    [
        ({}, 0, errors.OK),
        ({Outcome.HOLDS: 3}, 0, errors.OK),
        ({Outcome.HOLDS: 3, Outcome.UNDECIDED: 1}, 0, errors.UNDECIDED),
        ({Outcome.HOLDS: 3, Outcome.UNDECIDED: 1}, 1, errors.INTERNAL),
        ({Outcome.VIOLATED: 1, Outcome.UNDECIDED: 1}, 1, errors.NOT_MET),
    ],
)
def test_the_exit_code_is_that_of_the_worst(outcomes: dict[Outcome, int], internal: int, code: int) -> None:
    assert exit_code(Counter(outcomes), internal=internal) == code


def test_the_summary_counts_them() -> None:
    assert (
        summary(Counter({Outcome.HOLDS: 3, Outcome.VIOLATED: 1}))
        == "4 cases replayed: 3 HOLDS and 1 VIOLATED."
    )
    assert "nothing to replay" in summary(Counter())


def test_a_run_that_failed_is_replayed_by_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCBN_VERIFY_DATA", str(tmp_path / "data"))
    few = ("--cases", "3", "--seed", "1", "--world-sizes", "2", "--fail-fast")
    folder = str(tmp_path / "record")
    assert main(["run", "--subject", "local", *few, "--record", folder]) == errors.NOT_MET
    capsys.readouterr()
    assert main(["replay", "--all", folder]) == errors.NOT_MET
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("local: ")
    assert all("  VIOLATED " in line for line in lines[1:-1])
    assert len(lines) > 2
    assert lines[-1].endswith(" VIOLATED.")
    # On a right subject none of them fails any more.
    assert main(["replay", "--all", f"{folder}/cases", "--subject", "aggregated"]) == errors.OK
    assert " HOLDS." in capsys.readouterr().out.splitlines()[-1]

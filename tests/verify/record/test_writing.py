"""A record holds every trial as data, and kept cases are found again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from properties.case import Case, encode
from properties.case_checks import CaseError
from properties.observation import Observation, RankObservation, tensor_from_data
from properties.verdict import Outcome, Verdict, holds, undecided
from tests.verify.fakes import FakeRanks, examiner, tensor
from tests.verify.recorded import ARGUMENTS
from verify.engine.tally import Tally
from verify.record.journal import RecordError
from verify.record.kept_cases import data_folder, find_case, keep_case
from verify.record.previous_run import read
from verify.record.reading import trial_from
from verify.record.recall import Place
from verify.record.writing import Record
from verify.strict_json import line, plain
from verify.trial import Excused, Trial

CASE = Case(batches=(1, 3), seed=4)


def observed(case: Case) -> Observation:
    values = {"output.0": tensor([[np.nan, np.inf]]), "bits.0": tensor([1], "uint16")}
    return Observation(ranks=(RankObservation(rank=0, ending="returned", tensors=values),))


def lines(folder: Path) -> list[dict[str, object]]:
    text = (folder / "record.jsonl").read_text(encoding="utf-8")
    return [
        json.loads(line, parse_constant=lambda name: pytest.fail(f"not strict JSON: {name}"))
        for line in text.splitlines()
    ]


def test_a_failing_trial_is_recorded_whole_and_its_case_kept(tmp_path: Path) -> None:
    record = Record(tmp_path, {"seed": 3})
    record.keep(examiner({"forward": lambda case: True}, ranks=FakeRanks(observed)).examine(CASE))
    record.close()
    environment, trial = lines(tmp_path)
    assert environment == {"kind": "environment", "schema": 3, "seed": 3}
    assert trial["id"] == CASE.id
    assert trial["ratios"] == {"A": {"forward": 2.0}, "B": {"forward": 2.0}, "C": {"forward": 2.0}}
    stored = trial["observation"]["ranks"][0]["tensors"]["output.0"]  # type: ignore[index]
    np.testing.assert_array_equal(tensor_from_data(stored).values, [[np.nan, np.inf]])
    assert find_case(CASE.id, (tmp_path,)) == CASE


def test_a_passing_trial_is_recorded_by_its_counts_and_ratios(tmp_path: Path) -> None:
    record = Record(tmp_path, {})
    record.keep(examiner({"forward": lambda case: False}).examine(CASE))
    record.close()
    trial = lines(tmp_path)[1]
    assert trial["holds"] == [["forward", 4, 0.5]]
    assert not {"verdicts", "ratios", "observation", "excused"} & trial.keys()
    assert not (tmp_path / "cases").exists()


def several() -> tuple[Verdict, ...]:
    """Return verdicts that hold, with all kinds of counts, and one that is not decided."""
    counted = {"elements": 9, "undecided": 2, "blind": 3}
    return (
        Verdict(property="forward", outcome=Outcome.HOLDS, max_ratio=0.25, **counted),  # type: ignore[arg-type]
        undecided("running_mean", "an overflow", elements=4),
        Verdict(property="grad_input", outcome=Outcome.HOLDS, elements=5, max_ratio=math.inf),
        holds("purity", elements=2),
    )


@pytest.mark.parametrize("excused", [(), (Excused("S1", "running_mean"),)])
def test_what_a_campaign_counts_of_a_passing_trial_is_read_back(
    tmp_path: Path, excused: tuple[Excused, ...]
) -> None:
    trial = Trial(
        case=CASE, verdicts=several(), excused=excused, observation=observed(CASE), satisfied="A", seconds=0.5
    )
    place = Place(role="drawn", elapsed=1.5)
    record = Record(tmp_path, {})
    record.keep(trial, place)
    record.close()
    assert "observation" not in lines(tmp_path)[1]
    _, recalled = trial_from((tmp_path / "record.jsonl").read_bytes().splitlines()[1])
    assert recalled.place == place
    tallies = [Tally(), Tally()]
    for tally, one in zip(tallies, (trial, recalled.trial), strict=True):
        tally.add(one)
    assert vars(tallies[0]) == vars(tallies[1])
    assert recalled.trial.verdicts == trial.verdicts
    assert recalled.trial.case == CASE


def test_a_trial_of_an_older_record_is_read(tmp_path: Path) -> None:
    before = {
        "kind": "trial",
        "subject": "a",
        "id": CASE.id,
        "case": plain(CASE),
        "satisfied": "A",
        "verdicts": [plain(verdict) for verdict in several()],
        "ratios": {"A": {"forward": 0.25}},
        "excused": [],
        "seconds": 0.5,
        "place": {"role": "drawn", "elapsed": 1.5, "entry": "", "runs": 0},
    }
    _, recalled = trial_from(line(before).encode())
    assert recalled.trial.verdicts == several()
    opening = {"kind": "environment", "schema": 1, "arguments": plain(ARGUMENTS)}
    (tmp_path / "record.jsonl").write_text(f"{line(opening)}\n{line(before)}\n")
    record = Record(tmp_path)
    previous = read(record.journal)
    record.close()
    assert previous is not None
    assert previous.cases == 1


@pytest.mark.parametrize("schema", [0, 4])
def test_a_record_of_another_kind_is_refused_in_one_line(tmp_path: Path, schema: int) -> None:
    (tmp_path / "record.jsonl").write_text(line({"kind": "environment", "schema": schema}) + "\n")
    record = Record(tmp_path)
    with pytest.raises(RecordError, match=f"schema 1 to 3, but got schema={schema}; record a new run"):
        read(record.journal)
    record.close()


@pytest.mark.parametrize(
    "short", [[], [3], ["sing"], ["forward", -1], ["forward", "many"], ["forward", 1, 0.5, 0, 0, 0, 0]]
)
def test_counts_that_are_none_are_refused(short: list[object]) -> None:
    entry = {"kind": "trial", "subject": "a", "id": CASE.id, "case": plain(CASE), "place": {"role": "drawn"}}
    with pytest.raises((ValueError, CaseError)):
        trial_from(line({**entry, "holds": [short]}).encode())


def test_a_run_is_appended_to_those_that_a_record_holds(tmp_path: Path) -> None:
    for number in (1, 2):
        Record(tmp_path, {"seed": number}).close()
    assert [line["seed"] for line in lines(tmp_path)] == [1, 2]


def test_a_failure_of_our_machinery_is_recorded_with_its_traceback(tmp_path: Path) -> None:
    def behave(case: Case) -> Observation:
        raise RuntimeError("ranks broke")

    record = Record(tmp_path, {})
    record.keep(examiner({}, ranks=FakeRanks(behave)).examine(CASE))
    record.close()
    assert "ranks broke" in str(lines(tmp_path)[1]["internal"])


def test_a_case_is_found_by_the_beginning_of_its_id_by_file_and_as_json(tmp_path: Path) -> None:
    path = keep_case(CASE, tmp_path)
    assert path.name == f"{CASE.id}.json"
    assert find_case(CASE.id[:6], (tmp_path,)) == CASE
    assert find_case(str(path), ()) == CASE
    assert find_case(encode(CASE).decode(), ()) == CASE
    assert list(path.parent.iterdir()) == [path]


def test_an_ambiguous_id_asks_for_more_digits(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    for name in ("abcd1", "abcd2"):
        (tmp_path / "cases" / f"{name}.json").write_bytes(encode(CASE))
    with pytest.raises(CaseError, match="more digits"):
        find_case("abcd", (tmp_path,))


@pytest.mark.parametrize("text", ["0123456789ab", "nowhere.json", "../../etc", "{}{}", ""])
def test_what_names_no_case_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(CaseError):
        find_case(text, (tmp_path,))


def test_a_kept_case_that_was_spoilt_is_refused(tmp_path: Path) -> None:
    path = keep_case(CASE, tmp_path)
    path.write_text('{"batches": [1, 1], "exec": 1}', encoding="utf-8")
    with pytest.raises(CaseError, match="exec"):
        find_case(CASE.id, (tmp_path,))


def test_the_data_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_VERIFY_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("SYNCBN_VERIFY_DATA")
    assert data_folder().name == "syncbn-verify"

"""Reports are handlers of one stream: JSON document, log lines, terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.verify.fakes import Heard, examiner
from tests.verify.full_disk import room_for
from verify.campaign import Budget, Campaign, Policy
from verify.events import CampaignEnded, Event, GroupLost
from verify.exits import INTERNAL, NOT_MET, OK, UNDECIDED
from verify.main_job import table
from verify.report.document import Document, subject_data
from verify.report.lines import Lines
from verify.report.summary import grade_advice, verdict_words
from verify.report.terminal import Terminal
from verify.result import Accounting, KnownResult, PropertyResult, SubjectResult
from verify.run import exit_code

SUBJECT_KEYS = [
    "subject",
    "expectation",
    "domain",
    "excluded",
    "contract",
    "verdict",
    "grade",
    "cases",
    "seconds",
    "undecided_elements",
    "blind_elements",
    "known",
    "properties",
    "failures",
    "accounting",
]
FAILURE_KEYS = [
    "property",
    "case",
    "minimised",
    "quantity",
    "rank",
    "index",
    "observed",
    "expected",
    "bound",
    "ratio",
    "resembles",
    "ending",
]


def events() -> list[Event]:
    heard = Heard()
    Campaign(
        examiner=examiner({"forward": lambda case: case.channels > 3}),
        budget=Budget(cases=20),
        seed=1,
        emit=heard.handle,
        policy=Policy(tries=200),
    ).run()
    return [*heard, GroupLost(subject="fake:Subject", world_size=2, reason="died")]


def result(**changes: object) -> SubjectResult:
    fields: dict[str, object] = {
        "subject": "s",
        "label": "s",
        "expectation": "HOLDS",
        "verdict": "HOLDS",
        "grade": {"float32": "A"},
        "required": "A",
        "domain": {},
        "contract": {},
        "excluded": 0.0,
        "seconds": 1.0,
        "accounting": Accounting(cases=3),
    }
    return SubjectResult(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_document_has_the_keys_of_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    document = Document(path, environment={"python": "3"}, command=["verify"], seed=7)
    for event in events():
        document.handle(event)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert list(data) == ["schema", "environment", "command", "seed", "subjects"]
    assert (data["schema"], data["seed"], data["command"]) == (1, 7, ["verify"])
    (subject,) = data["subjects"]
    assert list(subject) == SUBJECT_KEYS
    assert list(subject["properties"]["forward"]) == ["holds", "violated", "undecided", "max_ratio"]
    assert list(subject["failures"][0]) == FAILURE_KEYS
    assert subject["failures"][0]["case"]["channels"] == 4
    assert subject["cases"] == 20


def test_the_document_is_there_before_anything_happens(tmp_path: Path) -> None:
    Document(tmp_path / "out.json", environment={}, command=[], seed=0)
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["subjects"] == []


def test_numbers_that_are_not_finite_are_spelled() -> None:
    spelled = subject_data(result(properties={"forward": PropertyResult(max_ratio=float("inf"))}))
    assert spelled["properties"]["forward"]["max_ratio"] == "inf"
    json.dumps(spelled, allow_nan=False)


def test_the_log_tells_failure_and_accounting() -> None:
    stream = io.StringIO()
    handler = Lines(stream)
    for event in events():
        handler.handle(event)
    text = stream.getvalue()
    for part in (
        "VIOLATED forward",
        "Reproduce with",
        "20 cases in",
        "20 (case, property) pairs",
        "undecided 0.00% and blind 0.00% of 80 elements",
        "excludes 0.0% of the default one",
        "0 failures of our own machinery",
        "group of 2 ranks lost: died",
    ):
        assert part in text, part


def test_the_log_tells_progress_now_and_then() -> None:
    ticks = iter(range(0, 10_000, 8))
    stream = io.StringIO()
    handler = Lines(stream, clock=lambda: next(ticks))
    for event in events():
        handler.handle(event)
    assert 5 <= stream.getvalue().count("judged\n") <= 15


def test_the_terminal_shows_what_the_log_does() -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    handler = Terminal(screen)
    for event in events():
        handler.handle(event)
    handler.close()
    assert "VIOLATED forward" in screen.getvalue()
    assert "20 cases in" in screen.getvalue()


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([result()], OK),
        ([result(verdict="VIOLATED")], NOT_MET),
        ([result(verdict="VIOLATED", expectation="VIOLATED")], OK),
        ([result(expectation="VIOLATED")], NOT_MET),
        ([result(verdict="UNDECIDED")], UNDECIDED),
        ([result(verdict="UNDECIDED"), result(verdict="VIOLATED")], NOT_MET),
        ([result(accounting=Accounting(cases=3, internal=1))], INTERNAL),
        ([result(accounting=Accounting(internal=1), verdict="VIOLATED")], NOT_MET),
    ],
)
def test_exit_codes(results: list[SubjectResult], code: int) -> None:
    assert exit_code(results) == code


def test_the_verdict_names_what_qualifies_it() -> None:
    known = (KnownResult(id="S1", state="seen", excused=2), KnownResult(id="S2", state="stale"))
    assert verdict_words(result(known=known)) == "HOLDS apart from 1 known discrepancy"
    properties = {"forward": PropertyResult(violated=1), "purity": PropertyResult(holds=1)}
    assert verdict_words(result(verdict="VIOLATED", properties=properties)) == "VIOLATED (forward)"


def test_a_looser_grade_is_advised_only_if_every_case_satisfies_it() -> None:
    assert "--grade B" in grade_advice(result(verdict="VIOLATED", grade={"float32": "A", "float16": "B"}))
    assert grade_advice(result(verdict="VIOLATED", grade={"float32": "none", "float16": "B"})) == ""
    assert grade_advice(result(verdict="HOLDS", grade={"float32": "A"})) == ""


def test_the_table_lists_systems_and_known_discrepancies_by_name() -> None:
    known = tuple(
        KnownResult(id=name, state=state, excused=state == "seen")
        for name, state in (("S1", "seen"), ("S3", "seen"), ("S7", "stale"), ("S9", "not exercised"))
    )
    lines = list(table([result(label="torch", known=known), result(label="local", expectation="VIOLATED")]))
    assert lines[0].split() == ["system", "verdict", "grade", "satisfied", "cases", "greatest", "ratio"]
    assert lines[1].startswith("torch")
    assert lines[2].startswith("local (control)")
    assert lines[3] == "torch: known discrepancies seen: S1 and S3"
    assert "stale, to be removed: S7" in lines[4]
    assert "not exercised: S9" in lines[5]


def test_a_full_disk_leaves_the_document_as_it_was_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    document = Document(path, environment={}, command=[], seed=0)
    before = path.read_bytes()
    ended = [event for event in events() if isinstance(event, CampaignEnded)]
    with room_for(len(before) + 50):
        document.handle(ended[0])
    assert "too large" in document.failed
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    document.handle(ended[0])
    assert document.failed == ""
    assert len(json.loads(path.read_text(encoding="utf-8"))["subjects"]) == 2

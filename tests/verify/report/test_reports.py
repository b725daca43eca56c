"""Reports are handlers of one stream: JSON document, log lines, terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest

from tests.verify.fakes import Heard, examiner
from tests.verify.full_disk import room_for
from verify.cli.main_job import conclusion, table
from verify.config import Budget, Policy
from verify.engine.campaign import Campaign
from verify.engine.engine import exit_code
from verify.errors import INTERNAL, NOT_MET, OK, UNDECIDED
from verify.events import CampaignEnded, Event, GroupLost
from verify.report.json_report import Document, subject_data
from verify.report.log import Detail, Lines
from verify.report.summary import grade_advice, verdict_words
from verify.report.terminal import Terminal
from verify.result import Accounting, KnownResult, PropertyResult, SubjectResult
from verify.subject import Subject

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
    "stands_on",
    "floor",
    "lacking",
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
    "stage",
    "convention",
    "cases",
    "when",
    "holds",
    "ending",
]


def events(expectation: str = "HOLDS") -> list[Event]:
    heard = Heard()
    subject = Subject(spec="fake:Subject", label="fake:Subject", expectation=expectation)
    Campaign(
        examiner=examiner({"forward": lambda case: case.channels > 3}, subject=subject),
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


@pytest.mark.parametrize("detail", ["usual", "everything"])
def test_the_log_tells_failure_and_accounting(detail: Detail) -> None:
    stream = io.StringIO()
    handler = Lines(stream, detail=detail)
    for event in events():
        handler.handle(event)
    text = stream.getvalue()
    for part in (
        "VIOLATED forward",
        "Reproduce with",
        "20 cases in",
        "on 1 to 3 ranks, ",
        "of 80 elements compared, 0.00% could not be decided",
        "excludes 0.0% of the default one",
        "0 failures of our own machinery",
    ):
        assert part in text, part
    for part in ("20 times a property was judged", "group of 2 ranks lost: died", "greatest ratio"):
        assert (part in text) == (detail == "everything"), part


def test_the_verdict_comes_first_and_then_each_failing_case_once() -> None:
    heard, stream = Heard(), io.StringIO()
    rules = {
        "grad_input": lambda case: case.channels > 3,
        "running_mean": lambda case: case.channels > 3,
        "forward": lambda case: case.channels > 3,
        "ending": lambda case: False,
    }
    Campaign(examiner=examiner(rules), budget=Budget(cases=20), seed=1, emit=heard.handle).run()
    handler = Lines(stream)
    for event in heard:
        handler.handle(event)
    text = stream.getvalue()
    assert text.count("VIOLATED ") == 2
    assert text.index("Subject: VIOLATED (") < text.index("VIOLATED forward: ") < text.index("Reproduce with")
    others = text[text.index("The same case also violates") :].splitlines()[1:3]
    assert [line.split()[0] for line in others] == ["running_mean", "grad_input"]


def test_a_failure_whose_causes_were_narrowed_is_told_again_where_everything_is() -> None:
    for changed in (False, True):
        stream = io.StringIO()
        handler = Lines(stream, detail="everything")
        for event in events():
            if changed and isinstance(event, CampaignEnded):
                failures = tuple(
                    msgspec.structs.replace(one, text="NARROWED") for one in event.result.failures
                )
                event = CampaignEnded(result=msgspec.structs.replace(event.result, failures=failures))
            handler.handle(event)
        assert ("By all that was seen:\nNARROWED" in stream.getvalue()) == changed
        assert ("By all" in stream.getvalue()) == changed


def test_a_system_that_is_as_expected_is_one_line_and_another_is_told_in_full() -> None:
    for expectation, lines in (("VIOLATED", 1), ("HOLDS", 20)):
        stream = io.StringIO()
        handler = Lines(stream, detail="unexpected", clock=iter(range(0, 10_000, 100)).__next__)
        for event in events(expectation):
            handler.handle(event)
        text = stream.getvalue()
        assert (text.count("\n") == 1) if lines == 1 else (text.count("\n") > lines), text
        assert ("VIOLATED forward: " in text) == (expectation == "HOLDS")
        assert "control, which must be reported" in text or expectation == "HOLDS"


def test_known_discrepancies_are_a_line_or_listed() -> None:
    known = (KnownResult(id="S1", state="seen", reason="Why."), KnownResult(id="S2", state="stale"))
    ended = CampaignEnded(result=result(known=known))
    for listed in (False, True):
        stream = io.StringIO()
        Lines(stream, known=listed).handle(ended)
        assert "2 known discrepancies: 1 seen and 1 stale; --known lists them" in stream.getvalue()
        assert "gone stale, to be removed: S2" in stream.getvalue()
        assert ("S1: seen. Why." in stream.getvalue()) == listed


def test_the_log_tells_progress_now_and_then() -> None:
    ticks = iter(range(0, 10_000, 8))
    stream = io.StringIO()
    handler = Lines(stream, detail="everything", clock=lambda: next(ticks))
    for event in events():
        handler.handle(event)
    assert 5 <= stream.getvalue().count("judged\n") <= 15


def test_the_terminal_shows_what_the_log_does() -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    handler = Terminal(Lines(screen), screen)
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


def test_the_table_lists_systems_and_a_sentence_says_what_came_out() -> None:
    known = tuple(
        KnownResult(id=name, state=state, excused=state == "seen")
        for name, state in (("S1", "seen"), ("S3", "seen"), ("S7", "stale"), ("S9", "not exercised"))
    )
    control = result(label="local", verdict="VIOLATED", expectation="VIOLATED")
    results = [control, result(label="aggregated"), result(subject="torch", label="torch (CPU)", known=known)]
    lines = list(table(results))
    assert lines[0].split() == ["system", "verdict", "cases", "ranks", "properties", "greatest", "error"]
    assert lines[1].startswith("local (control)  VIOLATED, as it must be")
    assert lines[3].startswith("torch (CPU)      HOLDS apart from 2 known discrepancies")
    assert list(conclusion(results, OK)) == [
        "torch (CPU): known discrepancies gone stale, to be removed: S7.",
        "The broken one was caught, the right one passed and torch has 4 known discrepancies, 2 of them seen "
        "(--known lists them).",
    ]
    assert list(conclusion([result(label="x", verdict="UNDECIDED")], UNDECIDED)) == [
        "Not met: x is UNDECIDED, expected HOLDS; see above."
    ]


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

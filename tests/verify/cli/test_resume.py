"""A run that was interrupted goes on: it ends as the same run in one go, and nothing is judged twice."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from properties.case import Case, Special
from properties.domain import Promise
from properties.observation import Collective, Observation, Raised, RankObservation
from properties.verdict import holds, undecided
from tests.verify.fakes import FakeRanks, Heard, broken, examiner, parts, returned, tensor
from tests.verify.full_disk import room_for
from tests.verify.recorded import ARGUMENTS
from verify.config import Budget, Policy
from verify.engine.campaign import Campaign
from verify.engine.engine import Run
from verify.events import FailureMinimised
from verify.known.entries import parse as parse_known
from verify.record.journal import RecordError
from verify.record.previous_run import read
from verify.record.reading import trial_from
from verify.record.recall import Place, Recall, Recalled
from verify.record.writing import Record, observation_to_data
from verify.result import SubjectResult
from verify.strict_json import plain
from verify.subject import Subject
from verify.trial import Excused, Trial

RULES = {
    "forward": lambda case: case.channels > 5,
    "grad_input": lambda case: len(case.batches) > 2 and case.batches[0] > 3,
    "purity": lambda case: False,
    "collectives": lambda case: case.channels > 6,
}
KNOWN = """
[[known]]
id = "one-channel"
reason = "It is so."
case = '{"seed": 5, "channels": 7}'
when = [{fact = "world_size", at_least = 2}]
properties = ["collectives"]
"""


class Killed(BaseException):
    """The process ended."""


class Kept(list[tuple[Trial, Place]]):
    """Everything that a record was given."""

    def add(self, trial: Trial, place: Place) -> None:
        self.append((trial, place))

    @property
    def drawn(self) -> list[str]:
        return [trial.case.id for trial, place in self if place.role == "drawn"]

    def memory(self) -> Recall:
        def load(trial: Trial, place: Place) -> Any:
            return lambda: Recalled(trial, place)

        return Recall([(trial.case.id, place, load(trial, place)) for trial, place in self])


def killed_at(number: int) -> FakeRanks:
    """Return ranks that end the process when they are asked for what they observed that many times."""
    asked = 0

    def behave(case: Case) -> Observation:
        nonlocal asked
        asked += 1
        if asked == number:
            raise Killed
        return returned(case)

    return FakeRanks(behave)


def campaign(kept: Kept, *, ranks: FakeRanks | None = None, **more: Any) -> Campaign:
    subject = Subject(spec="fake:Subject", label="fake:Subject", known=parse_known(KNOWN))
    settings: dict[str, Any] = {"budget": Budget(cases=40, seconds=None), "policy": Policy(), **more}
    return Campaign(
        examiner=examiner(RULES, ranks=ranks, subject=subject),
        seed=3,
        emit=settings.pop("heard", Heard()).handle,
        keep=settings.pop("keep", kept.add),
        **settings,
    )


def untimed(result: SubjectResult) -> SubjectResult:
    return msgspec.structs.replace(result, seconds=0.0)


def whole() -> tuple[SubjectResult, Kept, int]:
    kept, ranks = Kept(), FakeRanks()
    return campaign(kept, ranks=ranks).run(), kept, len(ranks.cases)


def test_a_campaign_that_is_killed_at_any_run_and_resumed_ends_as_in_one_go() -> None:
    expected, all_kept, runs = whole()
    assert {failure.property for failure in expected.failures} >= {"forward", "grad_input"}
    assert runs > 100
    for number in (1, 2, 7, 11, 20, 60, runs // 2, runs - 3, runs):
        kept = Kept()
        with pytest.raises(Killed):
            campaign(kept, ranks=killed_at(number)).run()
        before = len(kept)
        result = campaign(kept, memory=kept.memory()).run()
        assert untimed(result) == untimed(expected), number
        assert kept.drawn == all_kept.drawn, number
        assert len(kept.drawn) == len(set(kept.drawn))
        assert before <= number


def test_a_larger_budget_goes_on_from_what_was_judged() -> None:
    kept = Kept()
    first = campaign(kept).run()
    ranks = FakeRanks()
    result = campaign(kept, memory=kept.memory(), ranks=ranks, budget=Budget(cases=70, seconds=None)).run()
    assert result.accounting.cases == len(set(kept.drawn)) + 1 == 70 + 1
    assert len(kept.drawn) == 70
    ids = [{failure.case.id for failure in one.failures} for one in (first, result)]
    assert ids[0] <= ids[1]


def test_what_the_budget_draws_no_more_is_counted_all_the_same() -> None:
    """Another seed stands for another version of Hypothesis: nothing that was judged is drawn again."""
    kept, heard = Kept(), Heard()
    first = campaign(kept).run()
    other = campaign(kept, memory=kept.memory(), heard=heard)
    other.seed = 99
    before = len(kept)
    result = other.run()
    assert result.accounting.cases == first.accounting.cases
    assert {failure.property for failure in result.failures} == {f.property for f in first.failures}
    assert not [place for _, place in kept[before:] if place.role == "drawn"]
    assert len(heard.of(FailureMinimised)) == len(result.failures)


def test_seconds_that_were_used_up_are_not_given_twice() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    kept = Kept()
    budget = Budget(cases=None, seconds=4.0)
    first = campaign(kept, budget=budget, clock=clock).run()
    now[0] = 1000.0
    result = campaign(kept, memory=kept.memory(), budget=budget, clock=clock).run()
    assert result.accounting.cases - first.accounting.cases <= 1
    assert result.seconds == pytest.approx(first.seconds, rel=0.5)


# By way of a record


def recording(folder: Path, *, ranks: FakeRanks | None = None, **more: Any) -> SubjectResult:
    """Run the campaign with a record, going on with what that holds, as `verify.engine.engine` does."""
    record = Record(folder)
    try:
        previous = read(record.journal)
        resumed = {"resumed": True} if previous else {}
        record.begin({"arguments": plain(ARGUMENTS), **resumed})
        memory = previous.memory("fake:Subject") if previous else Recall()
        return campaign(Kept(), ranks=ranks, memory=memory, heard=record, keep=record.keep, **more).run()
    finally:
        os.close(record.journal._file)


def trials(folder: Path, role: str) -> list[str]:
    lines = map(json.loads, (folder / "record.jsonl").read_text("utf-8").splitlines())
    return [line["id"] for line in lines if line["kind"] == "trial" and line["place"]["role"] == role]


def test_a_run_that_is_killed_goes_on_from_its_record(tmp_path: Path) -> None:
    expected, kept, runs = whole()
    for number in (1, 5, 20, 60, runs // 2, runs):
        folder = tmp_path / str(number)
        with pytest.raises(Killed):
            recording(folder, ranks=killed_at(number))
        assert untimed(recording(folder)) == untimed(expected), number
        assert trials(folder, "drawn") == kept.drawn


def test_a_run_may_be_killed_again_and_again(tmp_path: Path) -> None:
    expected, kept, _ = whole()
    for _ in range(6):
        with pytest.raises(Killed):
            recording(tmp_path, ranks=killed_at(8))
    assert untimed(recording(tmp_path)) == untimed(expected)
    assert trials(tmp_path, "drawn") == kept.drawn


def observed(case: Case) -> Observation:
    """Return an observation that holds one of everything."""
    tensors = {"output.0": tensor([[np.nan, np.inf, 1.5]]), "bits.0": tensor([1], "uint16")}
    ranks = [
        RankObservation(
            rank=rank,
            ending="raised",
            raised=Raised("builtins.ValueError", "no", "forward 0", "Traceback"),
            tensors=tensors,
            modified=("input.0",),
            ledger=(Collective("all_reduce", "forward 0", (0, 1), "sum", ("float32",), ((3,),), 12),),
            digest="ab",
            seconds=0.5,
            facts={"before eps of plain": "1e-05"},
        )
        for rank in range(case.world_size)
    ]
    once = Observation(ranks=tuple(ranks))
    return Observation(ranks=tuple(ranks), again=once)


def same(one: Trial, other: Trial) -> bool:
    """Return whether two trials say the same, NaN being equal to NaN."""
    fields = [name for name in Trial.__slots__ if name not in ("observation", "expected")]
    data = [
        [repr(getattr(trial, name)) for name in fields]
        + [trial.observation and observation_to_data(trial.observation)]
        for trial in (one, other)
    ]
    return data[0] == data[1]


def test_a_trial_is_read_back_as_it_was(tmp_path: Path) -> None:
    case = Case(batches=(1, 2, 0), specials=(Special("nan"),), momentum=None)
    bad = broken("forward")
    worst = msgspec.structs.replace(bad.discrepancies[0], observed=math.nan, ratio=math.inf, bound=0.25)
    verdict = msgspec.structs.replace(
        bad, max_ratio=math.inf, ratios={"output float32": math.inf}, discrepancies=(worst,)
    )
    trial = Trial(
        case=case,
        verdicts=(verdict, holds("purity", elements=3), undecided("ending", "why")),
        excused=(Excused("S1", "grad_input"),),
        observation=observed(case),
        satisfied="none",
        graded={"A": {"forward": math.inf}, "B": {"forward": math.nan}},
        seconds=1.25,
    )
    place = Place(role="minimal", found="0123456789ab", kind="forward", complete=True, runs=3, took=1.5)
    record = Record(tmp_path, {})
    record.keep(trial, place)
    _, (_, text) = record.journal.lines()
    _, recalled = trial_from(text)
    assert recalled.place == place
    assert same(recalled.trial, trial)
    record.close()


@pytest.mark.parametrize("apart", [7, pytest.param(1, marks=pytest.mark.costly)])
def test_a_record_that_is_cut_off_at_any_byte_goes_on(tmp_path: Path, apart: int) -> None:
    """Prefixes are read without an error, and hold the trials whose lines are whole."""
    with pytest.raises(Killed):
        recording(tmp_path / "whole", ranks=killed_at(4))
    data = (tmp_path / "whole" / "record.jsonl").read_bytes()
    ids = trials(tmp_path / "whole", "stored") + trials(tmp_path / "whole", "drawn")
    ends = [index for index, byte in enumerate(data) if byte == 10]
    kinds = [json.loads(line)["kind"] for line in data.splitlines()]
    folder = tmp_path / "cut"
    folder.mkdir()
    about_an_end = {size for end in ends for size in range(end - 3, min(end + 4, len(data) + 1))}
    for size in sorted({*range(0, len(data) + 1, apart), *about_an_end}):
        (folder / "record.jsonl").write_bytes(data[:size])
        record = Record(folder)
        previous = read(record.journal)
        record.journal.close()  # without waiting for the disk
        lines = sum(end <= size for end in ends)  # only its end of line is missing: the entry is whole
        assert (previous is None) == (lines == 0), size
        assert (previous.cases if previous else 0) == kinds[:lines].count("trial"), size
    assert previous is not None
    assert previous.cases == len(ids) == 3


def test_a_record_that_was_cut_off_ends_as_in_one_go(tmp_path: Path) -> None:
    expected, kept, _ = whole()
    recording(tmp_path)
    data = (tmp_path / "record.jsonl").read_bytes()
    for share in (0.03, 0.2, 0.5, 0.9, 0.99):
        (tmp_path / "record.jsonl").write_bytes(data[: int(share * len(data))])
        assert untimed(recording(tmp_path)) == untimed(expected), share
        assert trials(tmp_path, "drawn") == kept.drawn, share


def test_only_the_last_run_goes_on(tmp_path: Path) -> None:
    for number in (4, 6):
        record = Record(tmp_path, {"arguments": plain(ARGUMENTS)})
        made = campaign(Kept(), ranks=killed_at(number), heard=record, keep=record.keep)
        with pytest.raises(Killed):
            made.run()
        record.close()
    record = Record(tmp_path)
    previous = read(record.journal)
    record.close()
    assert previous is not None
    assert previous.cases == 5


def test_a_campaign_that_ended_is_told_as_it_ended(tmp_path: Path) -> None:
    expected = recording(tmp_path)
    record = Record(tmp_path)
    previous = read(record.journal)
    record.close()
    assert previous is not None
    subject = Subject(spec="fake:Subject", label="fake:Subject")
    assert previous.result(subject, Budget(cases=50, seconds=None)) is None
    ended = previous.result(subject, Budget(cases=40, seconds=None))
    assert ended is not None
    assert ended[1] == expected
    other = Subject(spec="fake:Subject", label="fake:Subject", promise=Promise(grade="B"))
    with pytest.raises(RecordError, match="grade that the record has"):
        previous.result(other, Budget(cases=40, seconds=None))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"kind":"trial"}', "line 2: "),
        (b'{"kind":1}', "line 2: "),
        (b"[]", "line 2: "),
        (b'{"kind":"event","event":"CampaignEnded","result":{}}', "line 2: "),
        (b'{"kind":"environment","schema":4,"resumed":true}', "schema 1 to 3"),
        (b'{"kind":"environment","schema":4}', "schema 1 to 3"),
    ],
)
def test_a_line_that_is_none_of_a_record_is_named(line: bytes, expected: str, tmp_path: Path) -> None:
    record = Record(tmp_path, {"arguments": plain(ARGUMENTS)})
    record.journal.append(line)
    with pytest.raises(RecordError, match=expected) as caught:
        read(record.journal)
    assert "\n" not in str(caught.value)
    record.close()


def test_a_text_of_a_record_commands_no_terminal(tmp_path: Path) -> None:
    record = Record(tmp_path, {"arguments": plain(ARGUMENTS)})
    place = Place(role="drawn")
    record.keep(Trial(case=Case(), internal="a\x1b[2Jb\nc"), place)
    *_, (_, text) = record.journal.lines()
    assert trial_from(text)[1].trial.internal == "a\ufffd[2Jb\nc"
    record.close()


def test_a_full_disk_ends_the_campaign_with_what_was_judged(tmp_path: Path) -> None:
    expected, kept, _ = whole()
    subject = Subject(spec="fake:Subject", label="fake:Subject", known=parse_known(KNOWN))

    def run(record: Record) -> SubjectResult:
        previous = read(record.journal)
        record.begin({"arguments": plain(ARGUMENTS), **({"resumed": True} if previous else {})})
        made = Run(ARGUMENTS, [record], record=record, previous=previous, keep=tmp_path / "data")
        made.examiner = lambda subject: examiner(RULES, subject=subject)  # type: ignore[method-assign]
        made._parts = parts(RULES)
        return made.campaign(subject)

    record = Record(tmp_path)
    with room_for(8000):
        stopped = run(record)
    assert "too large" in record.failed
    assert stopped.stopped == f"the record cannot be written: {record.failed}"
    assert 0 < stopped.accounting.cases < expected.accounting.cases
    record.journal.close()
    assert (tmp_path / "record.jsonl").read_bytes().endswith(b"\n")
    again = Record(tmp_path)
    assert untimed(run(again)) == untimed(expected)
    again.close()
    assert trials(tmp_path, "drawn") == kept.drawn


def test_what_is_too_large_to_keep_is_left_out_of_an_observation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verify.record.writing.MAX_TENSOR_BYTES", 20)
    kept = []
    for case in (Case(batches=(1,)), Case(batches=(1, 1))):  # 14 and 28 bytes
        record = Record(tmp_path / str(case.world_size), {})
        observation = msgspec.structs.replace(observed(case), again=None)
        record.keep(Trial(case=case, internal="why", observation=observation), Place(role="drawn"))
        *_, (_, text) = record.journal.lines()
        found = trial_from(text)[1].trial.observation
        record.close()
        assert found is not None
        assert [rank.digest for rank in found.ranks] == ["ab"] * case.world_size
        kept.append([sorted(rank.tensors) for rank in found.ranks])
    assert kept == [[["bits.0", "output.0"]], [[], []]]

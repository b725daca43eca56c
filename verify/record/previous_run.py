"""The previous run: the last run of a record, read back so that it can go on.

Rules
-----
- A record may come from a stranger: every line is data, validated whole before anything is used. What is not
  as a record has it is a `RecordError` that names the line; nothing is guessed.
- Trials stay on the disk: what is kept in memory is where they are.
- The lines of earlier runs are not looked at; kinds of lines that are not known are left alone.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from properties.case import Case
from properties.case_checks import one_line
from verify.config import Budget, Config
from verify.events import CampaignEnded, CampaignStarted
from verify.record.journal import Journal, RecordError
from verify.record.reading import check_result, struct_from, trial_from
from verify.record.recall import Place, Recall, Recalled
from verify.record.writing import SCHEMA
from verify.result import SubjectResult
from verify.strict_json import plain
from verify.subject import Subject

_Judged = tuple[str, Place, Callable[[], Recalled]]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What every line of a record has."""

    kind: str
    event: str = ""
    resumed: bool = False


class _Schema(msgspec.Struct, frozen=True):
    schema: int = 0


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """The line `environment` that a run begins with."""

    arguments: Config
    versions: dict[str, str] = {}


@dataclass(slots=True, kw_only=True)
class PreviousRun:
    """The last run of a record.

    Attributes:
        opening: How it began.
        cases: How many drawn and stored cases it had judged.
        failing: The cases that failed, drawn or minimal, by subject and id.
    """

    opening: Opening
    cases: int = 0
    failing: defaultdict[str, dict[str, Case]] = field(default_factory=lambda: defaultdict(dict))
    _started: dict[str, CampaignStarted] = field(default_factory=dict)
    _results: dict[str, SubjectResult] = field(default_factory=dict)
    _judged: defaultdict[str, list[_Judged]] = field(default_factory=lambda: defaultdict(list))

    def result(self, subject: Subject, budget: Budget) -> tuple[CampaignStarted, SubjectResult] | None:
        """Return how the campaign over `subject` began and ended; None if it has not ended.

        Args:
            subject: As it is now.
            budget: A campaign that ended with another one goes on, as does one that its safety net ended.

        Raises:
            RecordError: If the subject promises something else now.
        """
        started = self._started.get(subject.spec)
        if started is None:
            return None
        for name in ("domain", "contract", "grade"):
            before, now = getattr(started, name), plain(getattr(subject.promise, name))
            if before != now:
                raise RecordError(
                    f"Expected {subject.spec} to have the {name} that the record has, but it has changed; "
                    "record a run of its own."
                )
        if (started.cases, started.seconds) != (budget.cases, budget.seconds):
            return None
        result = self._results.get(subject.spec)
        return (started, result) if result and not result.cut else None

    def memory(self, spec: str) -> Recall:
        """Return what was judged of the subject `spec`."""
        return Recall(self._judged[spec])

    def take(self, journal: Journal, kind: str, offset: int, text: bytes) -> None:
        """Take one line that follows the opening."""
        if kind == "trial":
            subject, recalled = trial_from(text)
            load = partial(_load, journal, offset, len(text))
            case = recalled.trial.case
            self._judged[subject].append((case.id, recalled.place, load))
            if recalled.trial.violated:
                self.failing[subject][case.id] = case
            self.cases += recalled.place.role != "minimal"
        elif kind == "CampaignStarted":
            started = struct_from(text, CampaignStarted)
            self._started[started.subject] = started
            self._results.pop(started.subject, None)
        elif kind == "CampaignEnded":
            ended = struct_from(text, CampaignEnded)
            check_result(ended.result)
            if not ended.interrupted:
                self._results[ended.result.subject] = ended.result


def read(journal: Journal) -> PreviousRun | None:
    """Return the last run of the record in `journal`; None if it holds none.

    Raises:
        RecordError: If a line of it is not as expected.
    """
    previous: PreviousRun | None = None
    begin = _last_run(journal)
    for number, (offset, text) in enumerate(journal.lines(), 1):
        if offset < begin:
            continue
        try:
            previous = _with_line(previous, journal, offset, text)
        except (ValueError, OverflowError, RecursionError) as error:
            raise RecordError(f"{journal.path}, line {number}: {one_line(str(error))}") from None
    return previous


def _last_run(journal: Journal) -> int:
    """Return the offset of the line with which the last run began."""
    begin = 0
    for offset, text in journal.lines():
        with contextlib.suppress(ValueError, RecursionError):  # said where it matters: in the last run
            line = msgspec.json.decode(text, type=Line)
            if line.kind == "environment" and not line.resumed:
                begin = offset
    return begin


def _with_line(previous: PreviousRun | None, journal: Journal, offset: int, text: bytes) -> PreviousRun:
    line = msgspec.json.decode(text, type=Line)
    if line.kind == "environment":
        return _opened(previous, text)
    if previous is None:
        raise ValueError("Expected a line `environment` first, but got " + repr(line.kind))
    previous.take(journal, line.event if line.kind == "event" else line.kind, offset, text)
    return previous


def _opened(previous: PreviousRun | None, text: bytes) -> PreviousRun:
    schema = msgspec.json.decode(text, type=_Schema).schema
    if not 1 <= schema <= SCHEMA:
        raise ValueError(
            f"Expected a record of schema 1 to {SCHEMA}, but got schema={schema!r}; record a new run."
        )
    opening = struct_from(_without_sampling(text) if schema < 3 else text, Opening)
    if previous is None:
        return PreviousRun(opening=opening)
    previous.opening = opening
    return previous


def _without_sampling(text: bytes) -> bytes:
    """Return an opening without the argument by which large tensors were judged whole; now all are."""
    data = msgspec.json.decode(text)
    if isinstance(data.get("arguments"), dict):
        data["arguments"].pop("every_element", None)
    return msgspec.json.encode(data)


def _load(journal: Journal, offset: int, length: int) -> Recalled:
    return trial_from(journal.line(offset, length))[1]

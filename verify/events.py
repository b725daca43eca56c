"""Events: what a campaign tells while it runs, frozen and JSON-serialisable.

A campaign knows nothing of terminals, files or formats: handlers (`verify.report`, `verify.record.writing`)
listen to the one stream. `to_json` writes an event with its type under the key `event`, non-finite numbers
spelled as strings.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from properties.case import Case
from properties.verdict import Outcome
from verify.result import Failure, Pace, SubjectResult
from verify.strict_json import line


class CampaignStarted(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """A campaign over one subject begins.

    Attributes:
        cases, seconds: The budget; None for no limit of that kind.
        excluded: Share of the default domain that the subject's domain leaves out.
        lacking: Keywords that the factory does not take, and what they say is therefore out of its domain.
    """

    subject: str
    label: str
    expectation: str
    grade: str
    domain: dict[str, object]
    contract: dict[str, object]
    excluded: float
    device: str
    backend: str
    seed: int
    cases: int | None
    seconds: float | None
    lacking: tuple[str, ...] = ()


class CaseDrawn(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """A case is about to run; `stored` tells the stored case of a known discrepancy from a drawn one."""

    subject: str
    case: Case
    number: int
    stored: str = ""


class CaseEnded(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """A case was judged.

    Attributes:
        outcome: Merged over its properties.
        outcomes: By property.
        internal: The traceback if our own machinery failed on it.
        seconds: Wall time of the case, drawing excluded.
        pace: What the cases of this campaign took on the ranks so far.
    """

    subject: str
    case_id: str
    number: int
    outcome: Outcome
    outcomes: dict[str, str]
    max_ratio: float
    internal: str
    seconds: float
    pace: Pace = Pace()


class FailureFound(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """A property was violated for the first time; the search for a smaller case begins."""

    subject: str
    property: str
    case: Case


class FailureMinimised(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """The smallest case of a violated property, with the whole message."""

    subject: str
    failure: Failure


class GroupLost(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """A rank group hung or lost a process, was ended, and will be started anew."""

    subject: str
    world_size: int
    reason: str


class CampaignEnded(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """A campaign over one subject is over, by its budget or by an interrupt."""

    result: SubjectResult
    interrupted: bool = False


Event = CampaignStarted | CaseDrawn | CaseEnded | FailureFound | FailureMinimised | GroupLost | CampaignEnded


class Handler(Protocol):
    """What listens to the stream; one format, one handler."""

    def handle(self, event: Event) -> None:
        """Take one event."""


def to_json(event: Event) -> str:
    """Return `event` as one line of strict JSON."""
    return line(event)

"""An outcome: what one unit of work found out, as plain data that crosses a pipe as one line of JSON."""

from __future__ import annotations

import msgspec

from verify.measure.power.work_units import Unit


class Smallest(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest failing case of a campaign.

    Attributes:
        violates: The property.
        ranks, channels: Its size.
        values: Values a channel, over all ranks.
        size: Bytes of its JSON.
        complete: Whether the search for a smaller one ended by itself.
        case: Its JSON.
    """

    violates: str
    ranks: int
    channels: int
    values: int
    size: int
    complete: bool
    case: str

    @property
    def small(self) -> bool:
        """Whether it has at most two ranks, and one channel."""
        return self.ranks <= 2 and self.channels == 1


class FaultOutcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="fault"):
    """What a campaign with one seed found out about a fault.

    Attributes:
        fault, seed: Which.
        properties: Violated ones, in the order of the catalogue.
        lacking: Those of the card's `caught_by` that were not violated.
        cases, seconds: Drawn until the first failure was found, from the start of the drawing.
        drawn: Cases judged in all.
        total_seconds: Of the whole campaign.
        minimising_seconds: Of it, after failures were found.
        smallest: The smallest failing case; None if the fault was missed.
        causes: Names of the causes that its failures resemble, the first failure's first.
        classes: The fault classes to which they belong.
        diagnosed: Whether causes were looked for at all.
        internal: Cases that our own machinery failed on.
        stopped: Why it ended before its budget.
    """

    fault: str
    seed: int
    properties: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    cases: int = 0
    seconds: float = 0.0
    drawn: int = 0
    total_seconds: float = 0.0
    minimising_seconds: float = 0.0
    smallest: Smallest | None = None
    causes: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    diagnosed: bool = False
    internal: int = 0
    stopped: str = ""

    @property
    def caught(self) -> bool:
        """Whether any property was violated."""
        return bool(self.properties)


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over the verdicts of one property on inputs of one dtype.

    Attributes:
        max_ratio: Greatest ratio; a string if it is not finite.
    """

    dtype: str
    property: str
    pairs: int = 0
    violated: int = 0
    elements: int = 0
    undecided: int = 0
    blind: int = 0
    max_ratio: float | str = 0.0

    def plus(self, other: Cell) -> Cell:
        """Return the counts of both."""
        return msgspec.structs.replace(
            self,
            pairs=self.pairs + other.pairs,
            violated=self.violated + other.violated,
            elements=self.elements + other.elements,
            undecided=self.undecided + other.undecided,
            blind=self.blind + other.blind,
            max_ratio=max(self.max_ratio, other.max_ratio, key=float),
        )


class Accusation(msgspec.Struct, frozen=True, kw_only=True):
    """A right subject that was accused: the property, the smallest case as JSON, the whole message."""

    property: str
    case: str
    text: str


class RightOutcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="right"):
    """What some cases said of a right subject.

    Attributes:
        spec, grade, seed: Which, judged by what.
        cases: Judged.
        accused: Of them, cases that violated a property.
        internal: Of them, cases that our own machinery failed on.
        cells: Counts by dtype and property.
        accusations: One a violated property, with its smallest case.
    """

    spec: str
    grade: str
    seed: int
    cases: int = 0
    accused: int = 0
    internal: int = 0
    seconds: float = 0.0
    cells: tuple[Cell, ...] = ()
    accusations: tuple[Accusation, ...] = ()


class NamedOutcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="named"):
    """What the report on a subject apart names.

    Attributes:
        subject, seed: Which.
        properties: Violated ones, in the order in which they are told.
        stage: What is said to be wrong first; empty if nothing is.
        causes: Of the failure that is told first, the first that is named first.
        classes: Of the first of them.
        convention: All is said to vanish under another contract.
        case: JSON of the case that is told first.
        drawn: Cases judged.
        internal: Of them, cases that our own machinery failed on.
    """

    subject: str
    seed: int
    properties: tuple[str, ...] = ()
    stage: str = ""
    causes: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    convention: bool = False
    case: str = ""
    drawn: int = 0
    seconds: float = 0.0
    internal: int = 0


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="broken"):
    """Our own machinery failed on a whole unit; `reason` is a traceback, or how the worker ended."""

    reason: str


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="ready"):
    """A worker has imported what it needs."""


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="beat"):
    """A worker is still at work."""


Outcome = FaultOutcome | RightOutcome | NamedOutcome | Broken
Message = Outcome | Ready | Beat


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A unit and its outcome."""

    unit: Unit
    outcome: Outcome

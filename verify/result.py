"""A result: what a campaign found out about one subject, as plain data with all its counts.

Merge order, from case to property to subject, as `properties.verdict` has it. Counts are of drawn cases and
stored cases of known discrepancies; runs that only serve to minimise a failure are not counted.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from properties.case import Case
from properties.verdict import Discrepancy

COARSE_SHARE = 0.1


class PropertyResult(msgspec.Struct, frozen=True, kw_only=True):
    """How many cases a property held on, was violated by, or could not be decided on.

    Attributes:
        holds, violated, undecided: Cases by outcome, after known discrepancies are set aside.
        excused: Cases whose violation a known discrepancy excused (wholly or in part).
        max_ratio: Greatest |observed - expected| / bound over all elements that no known discrepancy excuses.
    """

    holds: int = 0
    violated: int = 0
    undecided: int = 0
    excused: int = 0
    max_ratio: float = 0.0


class KnownResult(msgspec.Struct, frozen=True, kw_only=True):
    """A known discrepancy and its state: `seen`, `not exercised`, or `stale`; how many cases it excused.

    Attributes:
        skipped: Drawn cases that were not run because the discrepancy kills or hangs a rank.
    """

    id: str
    state: str
    reason: str = ""
    link: str = ""
    excused: int = 0
    skipped: int = 0


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a smallest case fails.

    Attributes:
        when: Always (empty); the `first` time in a process; only when it has run before in it (`again`), or
            `after` other cases; `unknown` if it holds on new ranks, and after the cases before it, too.
        after: The cases that must run before it.
        holds: Changes with which it holds, in words (`verify.engine.contrast`).
    """

    when: Literal["", "first", "again", "after", "unknown"] = ""
    after: tuple[Case, ...] = ()
    holds: tuple[str, ...] = ()


ALWAYS = History()


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A violated property with the smallest case found for it.

    Attributes:
        property: Its id.
        case: The smallest case.
        found: Id of the drawn case in which it was found.
        minimised: Whether the search for a smaller case ended by itself rather than by its time bound.
        repeats: Whether the smallest case failed again when it was run once more.
        history: When it fails: by itself, or by what ran before it in the same processes.
        discrepancy: The greatest discrepancy.
        text: The whole message for people.
        resembles: Names of known causes that predict what was observed, most specific first.
        stage: What is wrong first (`properties.diagnosis.stages.Stage`); empty if nothing tells.
        convention: Settings of a contract under which nothing is violated; empty if there are none.
        cases: How many of the cases judged failed in this way.
    """

    property: str
    case: Case
    found: str
    minimised: bool
    repeats: bool = True
    history: History = ALWAYS
    discrepancy: Discrepancy
    text: str
    resembles: tuple[str, ...] = ()
    stage: str = ""
    convention: dict[str, str] = {}
    cases: int = 0


class Accounting(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was counted, so that nothing is silently left out.

    Attributes:
        cases: Cases judged.
        skipped: Drawn cases not run because a known discrepancy kills or hangs a rank on them.
        pairs: (case, property) pairs judged.
        coarse_pairs: Pairs with more than a tenth of their elements undecided or blind.
        elements, undecided, blind: Elements (or facts) over all pairs.
        internal: Cases that our own machinery failed on; UNDECIDED, never counted as held.
        hung, died: Cases on which a rank hung, or its process ended.
        slow: Cases that were given up as too slow; UNDECIDED.
        minimising: Additional runs that only served to minimise failures.
    """

    cases: int = 0
    skipped: int = 0
    pairs: int = 0
    coarse_pairs: int = 0
    elements: int = 0
    undecided: int = 0
    blind: int = 0
    internal: int = 0
    hung: int = 0
    died: int = 0
    slow: int = 0
    minimising: int = 0

    @property
    def coarse_share(self) -> float:
        """Share of pairs with more than a tenth of their elements undecided or blind."""
        return self.coarse_pairs / self.pairs if self.pairs else 0.0

    @property
    def undecided_share(self) -> float:
        """Share of elements that could not be decided."""
        return self.undecided / self.elements if self.elements else 0.0

    @property
    def blind_share(self) -> float:
        """Share of elements whose bound exceeds the expected magnitude."""
        return self.blind / self.elements if self.elements else 0.0


class StandsOn(msgspec.Struct, frozen=True, kw_only=True):
    """What a verdict stands on.

    Attributes:
        cases: Cases on which at least one property was decided.
        synchronised: Of these, cases in which two ranks or more share a process group.
        world_sizes: Of these, cases by number of ranks.
        properties: Ids of the properties that were decided on a case.
    """

    cases: int = 0
    synchronised: int = 0
    world_sizes: dict[str, int] = {}
    properties: tuple[str, ...] = ()


NOTHING = StandsOn()


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What the cases of a subject took on the ranks.

    Attributes:
        case_seconds: Median seconds of a case on its slowest rank, what was compiled left out.
        compiled: Functions that `torch.compile` has compiled on a rank, over all cases.
        compile_seconds: What that took.
    """

    case_seconds: float = 0.0
    compiled: int = 0
    compile_seconds: float = 0.0


class SubjectResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign found out about one subject.

    Attributes:
        subject: The SPEC as given.
        label: How messages call it.
        expectation: HOLDS, or VIOLATED for a control.
        verdict: HOLDS, VIOLATED or UNDECIDED.
        grade: The best grade that every judged case of an input dtype satisfied; `none` if not even C.
        required: The grade it was judged by.
        domain, contract: As plain data.
        excluded: Share of the default domain that the subject's domain leaves out.
        stopped: Why the campaign ended before its budget; empty if it did not.
        stands_on: What the verdict stands on.
        floor: Cases that a verdict HOLDS needs.
        lacking: What a verdict HOLDS lacked, so that it is UNDECIDED; else empty.
        cut: The safety net behind the budget ended it.
        pace: What its cases took on the ranks.
    """

    subject: str
    label: str
    expectation: str
    verdict: str
    grade: dict[str, str]
    required: str
    domain: dict[str, object]
    contract: dict[str, object]
    excluded: float
    seconds: float
    accounting: Accounting
    known: tuple[KnownResult, ...] = ()
    properties: dict[str, PropertyResult] = {}
    failures: tuple[Failure, ...] = ()
    stopped: str = ""
    stands_on: StandsOn = NOTHING
    floor: int = 0
    lacking: str = ""
    cut: bool = False
    pace: Pace = Pace()

    @property
    def met(self) -> bool:
        """Whether the verdict is the expected one."""
        return self.verdict == self.expectation

    @property
    def max_ratio(self) -> float:
        """Greatest ratio over all properties."""
        return max((p.max_ratio for p in self.properties.values()), default=0.0)

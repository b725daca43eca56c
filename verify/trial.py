"""A trial: one case, what the ranks did, and the verdict; data alone, which the examiner makes."""

from __future__ import annotations

from dataclasses import dataclass, field

from properties.case import Case
from properties.expectation.expected import Expected
from properties.judge.ending import raised_at
from properties.observation import Observation
from properties.verdict import Outcome, Verdict, merge_outcomes


@dataclass(frozen=True, slots=True)
class Excused:
    """The property of a case that an entry excused."""

    entry: str
    property: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one case said.

    Attributes:
        verdicts: After known discrepancies are set aside.
        excused: What they were set aside for.
        observation: What the ranks gave back; None if our machinery failed.
        expected: What it was judged by.
        satisfied: The tightest grade whose bounds hold on this case; "none"; "" if it says nothing of grades.
        internal: The traceback if our machinery failed.
        seconds: Wall time.
    """

    case: Case
    verdicts: tuple[Verdict, ...] = ()
    excused: tuple[Excused, ...] = ()
    observation: Observation | None = None
    expected: Expected | None = None
    satisfied: str = ""
    graded: dict[str, dict[str, float]] = field(default_factory=dict)
    internal: str = ""
    seconds: float = 0.0

    @property
    def violated(self) -> tuple[str, ...]:
        """Ids of the violated properties, in the order of the catalogue."""
        return tuple(v.property for v in self.verdicts if v.outcome is Outcome.VIOLATED)

    @property
    def failures(self) -> tuple[str, ...]:
        """Kinds of failure, each told once a campaign: the violated properties, `ending` by how it ended.

        A rank that hangs, one that dies and one that raises are three different faults; so are exceptions of
        two types, or from two lines.
        """
        kinds = []
        for verdict in self.verdicts:
            if verdict.outcome is Outcome.VIOLATED:
                first = verdict.discrepancies[0] if verdict.discrepancies else None
                how = [first.ending, self._raised_at(first.rank)] if first and first.ending else []
                kinds.append(" ".join(word for word in (verdict.property, *how) if word))
        return tuple(kinds)

    def _raised_at(self, rank: int) -> str:
        ranks = self.observation.ranks if self.observation else ()
        return raised_at(ranks[rank]) if 0 <= rank < len(ranks) and ranks[rank].ending == "raised" else ""

    @property
    def outcome(self) -> Outcome:
        """Merged over the properties; UNDECIDED if our machinery failed."""
        return merge_outcomes(verdict.outcome for verdict in self.verdicts)

    @property
    def endings(self) -> frozenset[str]:
        """How its ranks ended, in the second run that a probe asked for, too."""
        runs = (self.observation, self.observation.again) if self.observation else ()
        return frozenset(rank.ending for run in runs if run for rank in run.ranks)

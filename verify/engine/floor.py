"""A floor: how much a verdict HOLDS must stand on, so that a handful of cases is not taken for a proof.

Below it the verdict is UNDECIDED, with a sentence that says what is lacking.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from properties.judge.catalogue import NUMERIC
from verify.config import DEFAULT_MIN_CASES
from verify.report.words import count, listing
from verify.result import PropertyResult, StandsOn


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least that a verdict HOLDS stands on.

    Attributes:
        cases: Cases on which at least one property was decided.
    """

    cases: int = DEFAULT_MIN_CASES

    @property
    def synchronised(self) -> int:
        """Of these, cases in which ranks share a process group: a quarter, and one at least."""
        return -(-self.cases // 4)

    def of_a_share(self, shares: int) -> Floor:
        """Return the floor of one of `shares` equal parts of a campaign."""
        return Floor(cases=-(-self.cases // shares))

    def lacking(
        self,
        stands: StandsOn,
        properties: dict[str, PropertyResult],
        *,
        asked: Collection[str] | None = None,
        cut: float | None = None,
    ) -> str:
        """Return what a verdict HOLDS lacks, as a sentence; empty if nothing.

        Args:
            stands: What it stands on.
            properties: Counts by property.
            asked: The properties that were asked for by name; None for all.
            cut: Seconds of the safety net that ended it; None if it came to its end.
        """
        if cut is not None:
            cases = count(stands.cases, "case")
            return (
                f"the safety net of {cut:g} s ended it after {cases}; "
                "--cases or --seconds say how long it may take instead"
            )
        return next(self._lacking(stands, properties, asked), "")

    def _lacking(
        self, stands: StandsOn, properties: dict[str, PropertyResult], asked: Collection[str] | None
    ) -> Iterator[str]:
        if stands.cases < self.cases:
            yield (
                f"it held on {count(stands.cases, 'case')}, and HOLDS needs {self.cases} or more; "
                "draw more, or lower --min-cases"
            )
        if not stands.synchronised:
            yield (
                f"no process group of the {count(stands.cases, 'case')} had two ranks, "
                "so that nothing is said of synchronisation"
            )
        if stands.synchronised < self.synchronised:
            yield (
                f"it held on {count(stands.synchronised, 'case')} with two ranks or more in a process group, "
                f"and HOLDS needs {self.synchronised}, a quarter of --min-cases {self.cases}"
            )
        names = asked if asked is not None else [name for name in properties if name in NUMERIC]
        if never := [name for name in names if name not in stands.properties]:
            yield f"{listing(never)} could be decided on no case"

"""A tally: counts over the trials of a campaign, from which its result is made."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from statistics import median

from properties.judge.catalogue import PROPERTIES
from properties.verdict import Outcome, Verdict, merge_outcomes
from verify.engine.examiner import GRADES
from verify.known.entries import Entry
from verify.result import COARSE_SHARE, Accounting, KnownResult, Pace, PropertyResult, StandsOn
from verify.trial import Trial

_ORDER = (*GRADES, "none")
MAX_HUNG = 3
"""Hung cases, each of which costs a time limit, after which drawing ends."""
MAX_SLOW = 3
"""Cases that were given up as too slow, each of which costs six time limits, after which drawing ends."""
MAX_LOST = 10
"""Cases that cost a rank group, after which drawing ends: whatever they say was said."""
_LAST = 200
"""Cases of which the median time is told, the last ones."""


class Tally:
    """Counts trials; `accounting`, `properties`, `grades`, `known` and `outcome` read them off."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._outcomes: dict[str, Counter[str]] = {}
        self._ratios: dict[str, float] = {}
        self._grades: dict[str, str] = {}
        self._seconds: deque[float] = deque(maxlen=_LAST)
        self._compiling = 0.0
        self._excused: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()

    @property
    def cases(self) -> int:
        """Cases judged."""
        return self._counts["cases"]

    @property
    def internal(self) -> int:
        """Cases that our own machinery failed on."""
        return self._counts["internal"]

    @property
    def hung(self) -> int:
        """Cases on which a rank was still running when its time was over."""
        return self._counts["hung"]

    @property
    def slow(self) -> int:
        """Cases that were given up long after their time was over, while the ranks still got on with them."""
        return self._counts["slow"]

    @property
    def lost(self) -> int:
        """Cases that a rank group did not survive, known discrepancies set aside."""
        return self._counts["lost"]

    @property
    def costly(self) -> str:
        """Why no more cases should be drawn: those that were have cost too much time; or nothing."""
        if self.hung >= MAX_HUNG:
            return f"{self.hung} cases hung"
        if self.slow >= MAX_SLOW:
            return f"{self.slow} cases took too long; give more --case-seconds"
        return f"{self.lost} cases cost a rank group" if self.lost >= MAX_LOST else ""

    @property
    def violated(self) -> frozenset[str]:
        """Ids of the properties that a case violated."""
        return frozenset(name for name, outcomes in self._outcomes.items() if outcomes["VIOLATED"])

    def add(self, trial: Trial) -> None:
        """Count one trial."""
        self._counts["cases"] += 1
        self._counts["internal"] += bool(trial.internal)
        self._counts["hung"] += "timeout" in trial.endings
        self._counts["slow"] += "slow" in trial.endings
        self._counts["died"] += "died" in trial.endings
        self._counts["lost"] += (
            bool({"timeout", "died", "stopped"} & trial.endings) and "ending" in trial.violated
        )
        self._time(trial)
        excused = {item.property for item in trial.excused}
        self._excused.update({item.entry for item in trial.excused})
        for verdict in trial.verdicts:
            self._add_verdict(verdict, excused=verdict.property in excused)
        if any(verdict.outcome is not Outcome.UNDECIDED for verdict in trial.verdicts):
            case = trial.case
            self._sizes[case.world_size] += 1
            groups = case.groups or (range(case.world_size),)
            self._counts["synchronised"] += any(len(group) > 1 for group in groups)
        if trial.satisfied:
            known = self._grades.get(trial.case.dtype, _ORDER[0])
            self._grades[trial.case.dtype] = max(known, trial.satisfied, key=_ORDER.index)

    def _time(self, trial: Trial) -> None:
        """Count what the trial took on its slowest rank; one that is recalled from a record has no times."""
        ranks = trial.observation.ranks if trial.observation else ()
        if any(rank.seconds for rank in ranks):
            self._seconds.append(max(rank.seconds - rank.compile_seconds for rank in ranks))
            self._compiling += max(rank.compile_seconds for rank in ranks)
            self._counts["compiled"] += max(rank.compiled for rank in ranks)

    def _add_verdict(self, verdict: Verdict, *, excused: bool) -> None:
        outcomes = self._outcomes.setdefault(verdict.property, Counter())
        # A pair that is excused altogether is neither decided nor undecided.
        outcomes[verdict.outcome.value] += not (excused and verdict.outcome is Outcome.UNDECIDED)
        outcomes["excused"] += excused
        ratio = math.inf if math.isnan(verdict.max_ratio) else verdict.max_ratio
        self._ratios[verdict.property] = max(self._ratios.get(verdict.property, 0.0), ratio)
        self._counts["pairs"] += 1
        self._counts["elements"] += verdict.elements
        self._counts["undecided"] += verdict.undecided
        self._counts["blind"] += verdict.blind
        self._counts["coarse"] += verdict.undecided + verdict.blind > COARSE_SHARE * verdict.elements

    def skip(self, entry: str) -> None:
        """Count one drawn case that is not run because `entry` kills or hangs a rank on it."""
        self._counts["skipped"] += 1
        self._skipped[entry] += 1

    def minimising(self, runs: int = 1) -> None:
        """Count runs that only serve to minimise a failure."""
        self._counts["minimising"] += runs

    def accounting(self) -> Accounting:
        """Return all counts."""
        c = self._counts
        return Accounting(
            cases=c["cases"],
            skipped=c["skipped"],
            pairs=c["pairs"],
            coarse_pairs=c["coarse"],
            elements=c["elements"],
            undecided=c["undecided"],
            blind=c["blind"],
            internal=c["internal"],
            hung=c["hung"],
            slow=c["slow"],
            died=c["died"],
            minimising=c["minimising"],
        )

    def pace(self) -> Pace:
        """Return what the cases took on the ranks."""
        return Pace(
            case_seconds=median(self._seconds) if self._seconds else 0.0,
            compiled=self._counts["compiled"],
            compile_seconds=self._compiling,
        )

    def properties(self) -> dict[str, PropertyResult]:
        """Return the counts by property."""
        return {
            name: PropertyResult(
                holds=outcomes["HOLDS"],
                violated=outcomes["VIOLATED"],
                undecided=outcomes["UNDECIDED"],
                excused=outcomes["excused"],
                max_ratio=self._ratios[name],
            )
            for name, outcomes in sorted(self._outcomes.items(), key=lambda item: _place(item[0]))
        }

    def stands_on(self) -> StandsOn:
        """Return what a verdict stands on."""
        return StandsOn(
            cases=self._sizes.total(),
            synchronised=self._counts["synchronised"],
            world_sizes={str(size): number for size, number in sorted(self._sizes.items())},
            properties=tuple(
                name for name, found in self.properties().items() if found.holds or found.violated
            ),
        )

    def grades(self) -> dict[str, str]:
        """Return, by input dtype, the best grade that every judged case satisfied."""
        return dict(sorted(self._grades.items()))

    def known(self, entries: tuple[Entry, ...], states: Mapping[str, str]) -> tuple[KnownResult, ...]:
        """Return the state and counts of each known discrepancy."""
        return tuple(
            KnownResult(
                id=entry.id,
                state="seen" if self._excused[entry.id] else states.get(entry.id, "not exercised"),
                reason=entry.reason,
                link=entry.link,
                excused=self._excused[entry.id],
                skipped=self._skipped[entry.id],
            )
            for entry in entries
        )

    def outcome(self) -> Outcome:
        """Return VIOLATED if any property was, else UNDECIDED if none was decided, else HOLDS.

        A case that was given up as too slow may be one that never ends: where there was one, nothing HOLDS.
        """
        merged = merge_outcomes(
            Outcome(name)
            for outcomes in self._outcomes.values()
            for name in outcomes
            if name in Outcome.__members__
        )
        return Outcome.UNDECIDED if self.slow and merged is Outcome.HOLDS else merged


def _place(property_id: str) -> tuple[int, str]:
    order = tuple(PROPERTIES)
    return (order.index(property_id) if property_id in order else len(order), property_id)

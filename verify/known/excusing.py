"""Excusing: taking what known discrepancies explain out of the verdicts of one case, and no more.

Theory of operation ------------------- An entry with a mechanism predicts other values, or wider bounds, for
some tensors of a case (`properties.mechanisms.predicted`). A tensor of a rank that is not as a right
subject's must be may be as a set of the case's entries predicts it; the case is then judged again with that
expected in its place, so that whatever no entry predicts is a violation as ever. Entries without a mechanism
excuse single discrepancies (an ending, a refusal, a fact of a conversion), each by one entry that covers all
its ranks, in the step where it was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import msgspec

from properties.case import Case
from properties.expectation.expected import Expected
from properties.mechanisms.matching import meets
from properties.observation import Observation, RankObservation
from properties.probe import second
from properties.verdict import Discrepancy, Outcome, Verdict
from verify.known.entries import Entry, Extent, extent
from verify.trial import Excused

MAX_TOGETHER = 6
"""Mechanisms of one case that are tried in every combination; of more, all but few, and few."""
PROPERTY_OF = {"output": "forward"}
"""The property that judges a quantity, where it has another name."""
PROBES = ("repeatable", "scaling")


class Judges(Protocol):
    """What the excusing needs of a subject's judge; all for its contract, grade and device."""

    def judge(self, expected: Expected) -> tuple[Verdict, ...]:
        """Return the verdicts of all properties on the case, by another expectation."""

    def predict(self, case: Case, sites: dict[str, Extent]) -> Expected:
        """Return what mechanisms give in a case."""


@dataclass(frozen=True, slots=True)
class _Applicable:
    entry: Entry
    extent: Extent


def excuse(
    verdicts: tuple[Verdict, ...],
    known: tuple[Entry, ...],
    *,
    case: Case,
    observation: Observation,
    expected: Expected,
    judges: Judges,
) -> tuple[tuple[Verdict, ...], tuple[Excused, ...]]:
    """Return `verdicts` without what `known` explains, and what it explained.

    Args:
        verdicts: Of one case.
        known: Entries of the subject.
        case: The case.
        observation: What the ranks gave back.
        expected: What the verdicts were judged by.
        judges: Judges the case again, and predicts.
    """
    excused: list[Excused] = []
    if predictive := _predictive(_violated(verdicts), known, case):
        verdicts, used = _by_prediction(verdicts, predictive, case, observation, expected, judges)
        excused.extend(used)
    # Only now: where a prediction says that nothing is refused, more has been judged.
    violated = _violated(verdicts)
    named = [entry for entry in known if not entry.mechanism and violated & set(entry.properties)]
    plain = [_Applicable(entry, where) for entry in named if (where := extent(entry, case))]
    kept = []
    for verdict in verdicts:
        rest, ids = _without(verdict, plain, observation)
        excused.extend(Excused(entry_id, verdict.property) for entry_id in ids)
        kept.append(rest)
    return tuple(kept), tuple(excused)


def _predictive(violated: set[str], known: tuple[Entry, ...], case: Case) -> list[_Applicable]:
    """Return the entries with a mechanism that may explain what is violated, and where they apply.

    What is not refused although it must be has numbers that were not expected, and a second run is as all of
    them together make it: any entry may be about them.
    """
    named = [entry for entry in known if entry.mechanism and violated & set(entry.properties)]
    if named and violated & {"refusal", *PROBES}:
        named = [entry for entry in known if entry.mechanism]
    return [_Applicable(entry, where) for entry in named if (where := extent(entry, case))]


def _violated(verdicts: Sequence[Verdict]) -> set[str]:
    return {verdict.property for verdict in verdicts if verdict.outcome is Outcome.VIOLATED}


# By prediction


def _by_prediction(
    verdicts: tuple[Verdict, ...],
    applicable: list[_Applicable],
    case: Case,
    observation: Observation,
    expected: Expected,
    judges: Judges,
) -> tuple[tuple[Verdict, ...], list[Excused]]:
    """Return the verdicts with what mechanisms predict in place of what is expected, and what it excused."""
    before = _violated(verdicts)
    mixed, used = _mixed(applicable, case, observation.ranks, expected, judges.predict)
    if used:
        verdicts = judges.judge(mixed)
    verdicts, probed = _probes(verdicts, applicable, case, observation, mixed, judges)
    after = _violated(verdicts)
    ids = {entry.id: entry for entry in (*used, *probed)}
    excused = [
        Excused(entry.id, name)
        for entry in ids.values()
        for name in sorted(before)
        if name in entry.properties and (name not in after or name in _touched(used.get(entry, ())))
    ]
    return verdicts, excused


def _touched(names: Sequence[str]) -> set[str]:
    quantities = {name.partition(".")[0] for name in names}
    return {PROPERTY_OF.get(quantity, quantity) for quantity in quantities}


def _mixed(
    applicable: list[_Applicable],
    case: Case,
    ranks: Sequence[RankObservation],
    expected: Expected,
    predict: Callable[[Case, dict[str, Extent]], Expected],
) -> tuple[Expected, dict[Entry, list[str]]]:
    """Return `expected` with the prediction of a tensor where that is met and the expectation is not.

    Returns:
        The expectation, and the entries that it took something of, with the names of the tensors.
    """
    tensors = {name: dict(by_rank) for name, by_rank in expected.tensors.items()}
    refusals, tracked = dict(expected.refusals), dict(expected.tracked)
    used: dict[Entry, list[str]] = {}
    open_ = _unmet(case, ranks, expected)
    for chosen in _combinations(applicable):
        if not open_:
            break
        predicted = predict(case, _sites(chosen))
        for rank in sorted({rank for _, rank in open_}):
            if rank in refusals and rank not in predicted.refusals:  # accepted: all of it is predicted
                refusals.pop(rank)
                for name, by_rank in predicted.tensors.items():
                    if rank in by_rank:
                        tensors.setdefault(name, {})[rank] = by_rank[rank]
                for name, counts in predicted.tracked.items():
                    if rank in counts:
                        tracked[name] = {**tracked.get(name, {}), rank: counts[rank]}
                open_ = {key for key in open_ if key[1] != rank}
                for a in chosen:
                    used.setdefault(a.entry, []).append("refusal")
        for name, rank in sorted(open_):
            interval = predicted.tensors.get(name, {}).get(rank)
            names = [a.entry for a in chosen if _names(a.entry, name)]
            if names and interval is not None and meets(ranks[rank].tensors.get(name), interval):
                tensors[name][rank] = interval
                open_ = open_ - {(name, rank)}
                for entry in names:
                    used.setdefault(entry, []).append(name)
    return (
        msgspec.structs.replace(expected, tensors=tensors, refusals=refusals, tracked=tracked),
        used,
    )


def _unmet(case: Case, ranks: Sequence[RankObservation], expected: Expected) -> set[tuple[str, int]]:
    """Return tensors (name, rank) that are not as expected, and ("", rank) of ranks that did not refuse.

    Tensors only of groups that returned; that a rank did not refuse is so whatever its peers did.
    """
    found: set[tuple[str, int]] = set()
    for group in case.process_groups:
        whole = all(ranks[rank].ending == "returned" for rank in group)
        for rank in group:
            if rank in expected.refusals:
                if ranks[rank].ending == "returned":
                    found.add(("", rank))
                continue
            if not whole:
                continue
            for name, by_rank in expected.tensors.items():
                if rank in by_rank and not meets(ranks[rank].tensors.get(name), by_rank[rank]):
                    found.add((name, rank))
    return found


def _combinations(applicable: list[_Applicable]) -> Iterator[tuple[_Applicable, ...]]:
    """Yield sets of entries, the largest first."""
    number = len(applicable)
    sizes = range(number, 0, -1)
    for size in sizes if number <= MAX_TOGETHER else (*sizes[:3], 2, 1):
        yield from combinations(applicable, size)


def _sites(chosen: Sequence[_Applicable]) -> dict[str, Extent]:
    """Return where each mechanism of these entries may act."""
    sites: dict[str, Extent] = {}
    for a in chosen:
        sites.setdefault(a.entry.mechanism, {}).update(a.extent)
    return sites


def _names(entry: Entry, name: str) -> bool:
    quantity = name.partition(".")[0]
    listed = PROPERTY_OF.get(quantity, quantity) in entry.properties
    return listed and (not entry.quantities or name.startswith(entry.quantities))


def _probes(
    verdicts: tuple[Verdict, ...],
    applicable: list[_Applicable],
    case: Case,
    observation: Observation,
    expected: Expected,
    judges: Judges,
) -> tuple[tuple[Verdict, ...], list[Entry]]:
    """Return the verdicts without a second run's differences that mechanisms predict in both runs.

    Bit for bit the runs may differ where a mechanism rounds to a subnormal number, say; each run must be what
    it predicts.
    """
    again, repeated = observation.again, second(case)
    failing = _violated(verdicts) & set(PROBES)
    if again is None or repeated is None:
        return verdicts, []
    excused: list[Entry] = []
    for chosen in _combinations(applicable):
        naming = [a.entry for a in chosen if failing & set(a.entry.properties)]
        if not naming:
            continue
        first = judges.predict(case, _sites(chosen))
        other = [
            replaced for a in chosen if (replaced := _Applicable(a.entry, extent(a.entry, repeated))).extent
        ]
        both = ((observation.ranks, first), (again.ranks, judges.predict(repeated, _sites(other))))
        kept = tuple(_without_predicted(verdict, both, naming) for verdict in verdicts)
        if kept != verdicts:
            excused.extend(naming)
            verdicts, failing = kept, _violated(kept) & set(PROBES)
    return verdicts, excused


def _without_predicted(
    verdict: Verdict, both: Sequence[tuple[Sequence[RankObservation], Expected]], naming: Sequence[Entry]
) -> Verdict:
    """Return what remains of a probe's verdict without the tensors that are as predicted in both runs.

    Only tensors of an entry that names the probe, too: what is right in both runs is as predicted as well.
    """
    mine = [entry for entry in naming if verdict.property in entry.properties]
    if verdict.property not in PROBES or not mine:
        return verdict
    rest = tuple(
        found
        for found in verdict.discrepancies
        if not any(_names(entry, found.quantity) for entry in mine)
        or not all(_predicted(ranks, predicted, found.quantity) for ranks, predicted in both)
    )
    return _left(verdict, rest)


def _predicted(ranks: Sequence[RankObservation], predicted: Expected, name: str) -> bool:
    by_rank = predicted.tensors.get(name, {})
    return bool(by_rank) and all(meets(ranks[rank].tensors.get(name), by_rank[rank]) for rank in by_rank)


# Discrepancy by discrepancy


def _without(
    verdict: Verdict, applicable: list[_Applicable], observation: Observation
) -> tuple[Verdict, tuple[str, ...]]:
    """Return what remains of a `verdict`, and the ids of the entries that took something away."""
    mine = [a for a in applicable if verdict.property in a.entry.properties]
    if verdict.outcome is not Outcome.VIOLATED or not mine:
        return verdict, ()
    used: set[str] = set()
    rest = []
    for found in verdict.discrepancies:
        covering = [a.entry.id for a in mine if _covers(a, found, observation)]
        used.update(covering)
        if not covering:
            rest.append(found)
    return _left(verdict, tuple(rest)), tuple(sorted(used))


def _left(verdict: Verdict, rest: tuple[Discrepancy, ...]) -> Verdict:
    if len(rest) == len(verdict.discrepancies):
        return verdict
    if rest:
        return msgspec.structs.replace(verdict, discrepancies=rest)
    return msgspec.structs.replace(
        verdict, outcome=Outcome.UNDECIDED, discrepancies=(), max_ratio=0.0, reason="excused"
    )


def _covers(applicable: _Applicable, found: Discrepancy, observation: Observation) -> bool:
    """Whether the entry excuses the whole of `found`: all its ranks, in the step in which it was seen."""
    entry, where = applicable.entry, applicable.extent
    if entry.endings and found.ending and found.ending not in entry.endings:
        return False
    if entry.observed and found.observed not in entry.observed:
        return False
    if entry.quantities and found.quantity != "ending" and not found.quantity.startswith(entry.quantities):
        return False
    ranks = found.mismatched_ranks or ((found.rank,) if found.rank >= 0 else tuple({r for r, _ in where}))
    late = found.quantity == "refusal"
    return all(_holds_at(rank, where, observation, late=late) for rank in ranks)


def _holds_at(rank: int, where: Extent, observation: Observation, *, late: bool) -> bool:
    """Whether the entry holds on `rank` in the step in which it raised, or in some step if that is not known.

    What should have been refused in an earlier step may be refused `late`, in a step where the entry does not
    hold.
    """
    steps = {step for other, step in where if other == rank}
    raised = observation.ranks[rank].raised
    if raised is not None and steps:
        _, _, number = raised.phase.rpartition(" ")
        if number.isdecimal():
            return int(number) in steps or (late and min(steps) < int(number))
    return bool(steps)

"""Property `ending`: on a case that is not to be refused, no rank hangs, dies or raises.

Rules
-----
- `stopped` tells nothing of a rank: a peer had failed. A rank that raised because its connection to a failed
  peer broke is not a discrepancy of its own.
- `slow` tells nothing either: no verdict rests on speed. It was given up long after its time was over.
- Where the input requires a gradient on some ranks of a group only, a subject may refuse: the same
  exception on every rank of the group, or none. Nothing else is judged there.
- One discrepancy for each way to end: deaths first, then hangs, then exceptions.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.property import Property
from properties.observation import Observation, RankObservation
from properties.verdict import Discrepancy, Verdict, holds, undecided, violated

TOO_SLOW = "the ranks still got on with the case long after its time was over: give it more --case-seconds"
_ORDER = {"died": 0, "timeout": 1, "raised": 2, "stopped": 3}
_BROKEN_CONNECTION = re.compile(
    r"connection (closed|reset|refused|was)|connect(ion)? .*(peer|closed)|peer|broken pipe|socket|gloo|nccl"
    r"|timed? ?out|abort",
    re.IGNORECASE,
)
_FOREIGN = re.compile(r"/torch/|/lib/python\d|<frozen|threading\.py")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]*)", line (?P<line>\d+),? in (?P<function>.*)$', re.MULTILINE)


def ending(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
    """Return whether every rank that had nothing to refuse returned."""
    del contract
    awaited = [seen for seen in observation.ranks if seen.rank not in expected.refusals]
    if not awaited:
        return None
    if case.ragged_grad:
        excused = {rank for group in case.process_groups if _alike(group, observation) for rank in group}
        awaited = [seen for seen in awaited if seen.rank not in excused]
    failed = [seen for seen in awaited if seen.ending not in ("returned", "stopped", "slow")]
    primary = _primary(failed)
    if primary:
        return violated("ending", _discrepancies(primary), elements=len(awaited))
    if slow := sum(seen.ending == "slow" for seen in awaited):
        return undecided("ending", TOO_SLOW, elements=slow)
    stopped = sum(seen.ending == "stopped" for seen in awaited)
    if stopped and not any(seen.ending == "returned" for seen in awaited):
        return undecided("ending", "the ranks were stopped because a peer had failed", elements=stopped)
    return holds("ending", elements=len(observation.ranks) - len(expected.refusals))


def describe_ending(seen: RankObservation) -> str:
    """Return how a rank ended, as a predicate: `died in backward 0 (signal SIGABRT)`.

    Of an exception's message the first line; a compiled module's goes on with a traceback of its own.
    """
    if seen.ending == "raised" and seen.raised is not None:
        first, _, rest = seen.raised.message.strip().partition("\n")
        return f"raised {seen.raised.type} in {seen.raised.phase}: {first}{' [...]' if rest else ''}"
    frame = innermost_frame(seen.stack)
    where = f", at {frame}" if frame else ""
    if seen.ending == "died":
        return f"died ({seen.exit or 'no exit status'}){where}"
    if seen.ending == "timeout":
        return f"did not end in time{where}"
    if seen.ending == "slow":
        return f"was too slow{where}"
    return "was stopped because a peer had failed" if seen.ending == "stopped" else seen.ending


def innermost_frame(stack: str) -> str:
    """Return the innermost frame outside torch and the standard library in a dump of faulthandler."""
    frames = list(_FRAME.finditer(stack))
    own = [frame for frame in frames if not _FOREIGN.search(frame["file"])]
    chosen = (own or frames)[:1]
    return "".join(f"{m['file']}:{m['line']} in {m['function']}" for m in chosen)


def raised_at(seen: RankObservation) -> str:
    """Return what a rank raised, and the line outside torch and the standard library: `TypeError a.py:34`.

    Without such a line it is the phase. Empty if it did not raise.
    """
    if seen.raised is None:
        return ""
    frames = [frame for frame in _FRAME.finditer(seen.raised.traceback) if not _FOREIGN.search(frame["file"])]
    last = frames[-1] if frames else None
    place = f"{PurePosixPath(last['file']).name}:{last['line']}" if last else seen.raised.phase.split()[0]
    return f"{seen.raised.type} {place}"


def _alike(group: tuple[int, ...], observation: Observation) -> bool:
    """Whether all ranks of `group` raised an exception of the same type."""
    seen = [observation.ranks[rank] for rank in group]
    types = {one.raised.type for one in seen if one.raised is not None}
    return all(one.ending == "raised" for one in seen) and len(types) == 1


def _primary(failed: list[RankObservation]) -> list[RankObservation]:
    causes = [seen for seen in failed if not _is_consequence(seen)]
    return causes or failed


def _is_consequence(seen: RankObservation) -> bool:
    return (
        seen.ending == "raised"
        and seen.raised is not None
        and _BROKEN_CONNECTION.search(seen.raised.message) is not None
    )


def _discrepancies(primary: list[RankObservation]) -> list[Discrepancy]:
    kinds: dict[tuple[str, str, str], list[RankObservation]] = {}
    for seen in primary:
        raised = (seen.raised.type, seen.raised.phase) if seen.raised else ("", "")
        kinds.setdefault((seen.ending, *raised), []).append(seen)
    found = []
    for kind in sorted(kinds, key=lambda kind: (_ORDER[kind[0]], kind)):
        first = kinds[kind][0]
        ranks = tuple(seen.rank for seen in kinds[kind])
        listed = ("ranks " if len(ranks) > 1 else "rank ") + ", ".join(map(str, ranks))
        found.append(
            Discrepancy(
                quantity="ending",
                rank=first.rank,
                observed=kind[1] or first.exit or kind[0],
                expected="returned",
                mismatched=len(ranks),
                mismatched_ranks=ranks,
                message=f"{listed} {describe_ending(first)}",
                ending=kind[0],
            )
        )
    return found


ENDING = Property(
    id="ending",
    judge=ending,
    holds="On a case that is not to be refused, no rank hangs, dies or raises.",
    violation="a rank hangs, dies or raises on a case that it must accept",
    must="every rank must return.",
    quantities="how each rank ended",
    not_judged="A rank that stopped because a peer had failed.",
    of_ragged_cases=True,
)

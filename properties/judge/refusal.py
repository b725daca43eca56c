"""Property `refusal`: an input that must be refused is refused in its forward, alike on every rank.

Rules
-----
- Each rank that must refuse raises, with an exception of the named type or, since a name does not tell a
  class's bases, of a type that is neither built in nor torch's.
- An exception that wraps another (a compiled module's, a framework's with its cause) is of either's type.
- The type is the same on all ranks of a group: a rank that refuses alone leaves its peers waiting.
- In evaluation without buffers a rank with one value refuses a wrong input for that, too: of either type.
- A rank that was stopped while a peer of its group had refused did not refuse in time.
- A rank that was too slow tells nothing.
"""

from __future__ import annotations

import builtins

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.ending import TOO_SLOW, describe_ending
from properties.judge.property import Property
from properties.observation import Observation, Raised, RankObservation
from properties.verdict import Discrepancy, Verdict, holds, undecided, violated


def refusal(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
    """Return whether every rank that must refuse the case did so, with one type of exception a group."""
    del contract
    if not expected.refusals:
        return None
    found, told = [], 0
    for group in case.process_groups:
        seen = [observation.ranks[rank] for rank in group if rank in expected.refusals]
        told += sum(one.ending not in ("stopped", "slow") for one in seen)
        found.extend(_unrefused(seen, expected))
        found.extend(_unlike([one for one in seen if not _refuses_on_its_own(case, one.rank)]))
    if found:
        return violated("refusal", found, elements=len(expected.refusals))
    if not told:
        slow = any(one.ending == "slow" for one in observation.ranks)
        return undecided("refusal", TOO_SLOW if slow else "the ranks were stopped because a peer had failed")
    return holds("refusal", elements=len(expected.refusals))


def is_named(raised: str, wanted: str) -> bool:
    """Return whether an exception of type name `raised` may count as one of type name `wanted`."""
    module, _, name = raised.rpartition(".")
    _, _, asked = wanted.rpartition(".")
    if not asked or name == asked:
        return True
    kind, base = getattr(builtins, name, None), getattr(builtins, asked, None)
    if module in ("", "builtins") and isinstance(kind, type):
        return isinstance(base, type) and issubclass(kind, base)
    return not module.startswith("torch")


def _names(raised: Raised, wanted: str) -> bool:
    """Whether an exception, or one that it wraps, is of type `wanted`; ranks tell a wrapped one's base."""
    wrapped = [name for name in raised.wraps if "." not in name]
    return any(is_named(name, wanted) for name in (raised.type, *wrapped))


def _refuses_on_its_own(case: Case, rank: int) -> bool:
    """Whether `rank` refuses its first input, whatever is wrong with it, also for its single value."""
    alone = case.steps[0].mode == "eval" and not case.tracking
    return bool(case.wrong) and alone and case.count_of(rank) == 1


def _unrefused(seen: list[RankObservation], expected: Expected) -> list[Discrepancy]:
    refused = any(one.ending == "raised" for one in seen)
    found = []
    for one in seen:
        wanted = expected.refusals[one.rank] or "an exception"
        if one.ending == "slow" or (one.ending == "stopped" and not refused):
            continue
        if one.ending == "raised" and one.raised is not None:
            if one.raised.phase.startswith("backward"):
                found.append(_discrepancy(one, wanted, "refuses too late: it"))
            elif not _names(one.raised, expected.refusals[one.rank]):
                found.append(_discrepancy(one, wanted, "must refuse with " + wanted + ", but"))
            continue
        found.append(_discrepancy(one, wanted, "must refuse the input, but"))
    return found


def _unlike(seen: list[RankObservation]) -> list[Discrepancy]:
    raised = [one for one in seen if one.raised is not None]
    other = next((one for one in raised if one.raised and one.raised.type != _type(raised[0])), None)
    if other is None:
        return []
    return [_discrepancy(other, _type(raised[0]), f"and rank {raised[0].rank} refuse differently: it")]


def _type(seen: RankObservation) -> str:
    return seen.raised.type if seen.raised else ""


def _discrepancy(seen: RankObservation, wanted: str, how: str) -> Discrepancy:
    return Discrepancy(
        quantity="refusal",
        rank=seen.rank,
        observed=_type(seen) or seen.ending,
        expected=wanted,
        mismatched_ranks=(seen.rank,),
        message=f"rank {seen.rank} {how} {describe_ending(seen)}",
        ending=seen.ending,
    )


REFUSAL = Property(
    id="refusal",
    judge=refusal,
    holds="An input that must be refused is refused in its forward, alike on every rank of the group.",
    violation="an input that must be refused is not refused alike on every rank",
    must="every rank must refuse the case, with the same type of exception.",
    quantities="the type of the exception on each rank",
    not_judged="Where nothing must be refused.",
    of_ragged_cases=True,
)

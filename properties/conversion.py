"""Property `conversion`: conversion changes nothing of a tree of modules but what normalises in it.

Rules
-----
- Every plain batch norm is replaced, and the layer in its place has the process group of the call. A layer
  that is no batch norm is left alone; one that is synchronized already keeps its process group; a subclass
  of batch norm may be replaced by something that still does what it did.
- Of all of them: parameters are the same objects, options, mode, hooks and attributes are as before, buffers
  have the same values in the same dtype; one layer under two names stays one layer, under the same names.
- A subject that offers no conversion tells no facts, and is not asked. `verify.ranks.conversion` tells them.
"""

from __future__ import annotations

from collections.abc import Iterator

from properties.case import Case
from properties.completion import complete_ranks
from properties.domain import Contract
from properties.expected import Expected
from properties.observation import Observation
from properties.verdict import Discrepancy, Verdict, holds, violated

_ENDING = "ending of the call"
_GROUP = "process_group of the call"
_NOT_COMPARED = ("kind", "class", "process_group", "sign")
Facts = dict[str, str]


def conversion(
    case: Case, observation: Observation, expected: Expected, contract: Contract
) -> Verdict | None:
    """Return whether conversion changed nothing of a tree of modules but what it is for."""
    del contract
    if case.probe != "conversion":
        return None
    facts = 0
    wrong: dict[tuple[str, str, str], list[int]] = {}
    for rank in complete_ranks(case, observation, expected):
        told = observation.ranks[rank].facts
        facts += len(told)
        for one in _differences(_of(told, "before "), _of(told, "after ")):
            wrong.setdefault(one, []).append(rank)
    if wrong:
        return violated("conversion", [_discrepancy(*item) for item in wrong.items()], elements=facts)
    return holds("conversion", elements=facts) if facts else None


def _of(told: Facts, when: str) -> Facts:
    return {name.removeprefix(when): value for name, value in told.items() if name.startswith(when)}


def _differences(before: Facts, after: Facts) -> Iterator[tuple[str, str, str]]:
    """Yield (what, observed, expected) for each fact that is not as it must be."""
    if after.get(_ENDING, "returned") != "returned":
        yield _ENDING, after[_ENDING], "returned"
        return
    for what, value in before.items():
        aspect, _, place = what.partition(" of ")
        kind = before.get(f"kind of {place}", "")
        found = after.get(what, "missing")
        if aspect == "class":
            if kind == "plain" and found == value:
                yield what, found, "a synchronized class"
            if kind == "instance" and found != value:
                yield what, found, value
        elif aspect == "sign" or (aspect == "process_group" and kind == "synchronized"):
            if found != value:
                yield what, found, value
        elif aspect not in _NOT_COMPARED and found != value:
            yield what, found, value
        if aspect == "kind" and value == "plain":
            yield from _group(before, after, place)


def _group(before: Facts, after: Facts, place: str) -> Iterator[tuple[str, str, str]]:
    """Yield the process group of a replaced layer, if it tells one, and it is not that of the call."""
    what = f"process_group of {place}"
    replaced = after.get(f"class of {place}") != before.get(f"class of {place}")
    if replaced and after.get(what, before[_GROUP]) != before[_GROUP]:
        yield what, after[what], before[_GROUP]


def _discrepancy(one: tuple[str, str, str], ranks: list[int]) -> Discrepancy:
    what, observed, asked = one
    return Discrepancy(
        quantity=what,
        rank=ranks[0],
        observed=observed,
        expected=asked,
        mismatched=len(ranks),
        mismatched_ranks=tuple(ranks),
        message=f"After conversion, {what} is {observed}, but must be {asked}.",
    )

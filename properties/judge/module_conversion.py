"""Property `conversion`: conversion changes nothing of a tree of modules but what normalises in it.

Rules
-----
- Every plain batch norm is replaced, and the layer in its place has the process group of the call. A layer
  that is no batch norm is left alone; one that is synchronized already keeps its process group; a subclass
  of batch norm may be replaced by something that still does what it did.
- Of all of them: parameters are the same objects, options, mode, hooks and attributes are as before, buffers
  have the same values in the same dtype; one layer under two names stays one layer, under the same names.
- A subject that offers no conversion tells no facts, and is not asked.
  `verify.ranks.worker.conversion_facts` tells them.
"""

from __future__ import annotations

from collections.abc import Iterator

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.completion import complete_ranks
from properties.judge.property import Property
from properties.observation import Observation
from properties.verdict import Discrepancy, Verdict, holds, violated

_ENDING = "ending of the call"
_GROUP = "process_group of the call"
_NOT_SET = "not set"
_OF_KINDS = {"class": "instance", "process_group": "synchronized", "kind": "no kind"}
"""Aspects that must be as before in layers of one kind only."""
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
        kind, found = before.get(f"kind of {place}", ""), after.get(what, "missing")
        if aspect == "class" and kind == "plain":
            if found == value:
                yield what, found, "a synchronized class"
            else:
                yield from _group(before, after, place)
        elif found != value and _is_kept(aspect, kind, found):
            yield what, found, value


def _is_kept(aspect: str, kind: str, found: str) -> bool:
    """Return whether an aspect of a layer must be as before; `found` is what it is."""
    if found == _NOT_SET:  # Another class need not have an option under that name.
        return aspect == "qconfig"
    if aspect in _OF_KINDS:
        return kind == _OF_KINDS[aspect]
    return True


def _group(before: Facts, after: Facts, place: str) -> Iterator[tuple[str, str, str]]:
    """Yield the process group of a replaced layer, if it tells one, and it is not that of the call."""
    what = f"process_group of {place}"
    if after.get(what, before[_GROUP]) != before[_GROUP]:
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
        message=f"After conversion, {_quoted(what)} is {observed}, but must be {asked}.",
    )


def _quoted(what: str) -> str:
    """Return "an aspect of a module" with the module's name in quotes."""
    aspect, of, place = what.partition(" of ")
    return f"{aspect} of {place!r}" if of and place else what


CONVERSION = Property(
    id="conversion",
    judge=conversion,
    holds="Conversion changes nothing of a tree of modules but what normalises in it.",
    violation="conversion of a tree of modules changes more than it must, or less",
    must="conversion must replace every plain batch norm, and keep all else.",
    quantities="parameters, options, mode, hooks, attributes, buffers and names of every module",
    not_judged="Without a `convert_sync_batchnorm` of the subject's own; cases that do not ask for it.",
    needs_probe=True,
)

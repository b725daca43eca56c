"""Properties `eval_is_local` and `collectives`: when ranks communicate, and that they do it alike.

Rules
-----
- Evaluation never communicates, neither in its forward nor in its backward: ranks evaluate different numbers
  of batches, and a collective there would hang them. So the contract `affine_grad=sum|mean` is about
  training: the gradients of weight and bias that an evaluation gives are each rank's own.
- In training, the ranks of a group issue the same collectives in the same order: operation, reduction,
  dtypes, and, where every rank contributes alike, sizes. A mismatch that happens to work on one backend
  hangs, aborts or corrupts on another. Send and receive are recorded, not compared.
- Rooted and uneven operations (broadcast, gather, all_to_all, a list all_gather) may differ in size by rank;
  of those only operation, reduction and the kinds of dtypes are compared. What is scattered is the root's
  alone: the other ranks of a scatter contribute nothing, whose dtype could be compared.
"""

from __future__ import annotations

import math

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.completion import INCOMPLETE, complete_groups, failed_ranks
from properties.observation import Collective, Observation
from properties.verdict import Discrepancy, Verdict, holds, undecided, violated

_POINT_TO_POINT = ("send", "recv", "isend", "irecv")
_UNIFORM = ("allreduce", "reducescatterbase", "reducescattertensor", "allgatherbase", "allgatherintotensor")


def eval_is_local(
    case: Case, observation: Observation, expected: Expected, contract: Contract
) -> Verdict | None:
    """Return whether no rank communicated in evaluation mode."""
    phases = {
        f"{what} {index}"
        for index, step in enumerate(case.steps)
        for what in ("forward", "backward")
        if step.mode == "eval"
    }
    if not phases or case.wrong:
        return None
    guilty: dict[str, list[int]] = {}
    ops: dict[str, str] = {}
    for seen in observation.ranks:
        for entry in seen.ledger:
            if entry.phase in phases:
                guilty.setdefault(entry.phase, []).append(seen.rank)
                ops.setdefault(entry.phase, entry.op)
    if guilty:
        reduced = contract.affine_grad != "local"
        found = [_spoken(phase, ops[phase], ranks, reduced=reduced) for phase, ranks in guilty.items()]
        return violated("eval_is_local", found, elements=case.world_size)
    silent = sum(seen.ending == "returned" for seen in observation.ranks)
    if silent:
        return holds("eval_is_local", elements=silent)
    return undecided("eval_is_local", INCOMPLETE) if failed_ranks(observation, expected) else None


def collectives(
    case: Case, observation: Observation, expected: Expected, contract: Contract
) -> Verdict | None:
    """Return whether the ranks of each group issued the same collectives in the same order."""
    del contract
    facts, found = 0, []
    for group in complete_groups(case, observation, expected):
        if len(group) < 2:
            continue
        facts += len(group) - 1
        sequences = [_comparable(observation.ranks[rank].ledger) for rank in group]
        for rank, sequence in zip(group[1:], sequences[1:], strict=True):
            one = _mismatch((group[0], sequences[0]), (rank, sequence))
            if one is not None:
                found.append(one)
                break
    if found:
        return violated("collectives", found, elements=facts)
    if facts:
        return holds("collectives", elements=facts)
    several = any(len(group) > 1 for group in case.process_groups)
    return undecided("collectives", INCOMPLETE) if several and failed_ranks(observation, expected) else None


def _comparable(ledger: tuple[Collective, ...]) -> list[Collective]:
    return [entry for entry in ledger if not entry.op.strip("_").startswith(_POINT_TO_POINT)]


def _key(entry: Collective) -> tuple[object, ...]:
    plain = entry.op.replace("_", "")
    kind = (plain, entry.group, entry.reduction, frozenset(entry.dtypes))
    if plain.startswith(_UNIFORM):
        return (*kind, tuple(math.prod(shape) for shape in entry.shapes))
    return kind


def _alike(a: Collective, b: Collective) -> bool:
    if a.op == b.op == "scatter" and not (a.dtypes and b.dtypes):  # one of them is not the root
        return (a.group, a.reduction) == (b.group, b.reduction)
    return _key(a) == _key(b)


def _mismatch(one: tuple[int, list[Collective]], other: tuple[int, list[Collective]]) -> Discrepancy | None:
    (first, left), (rank, right) = one, other
    for position in range(max(len(left), len(right))):
        a = left[position] if position < len(left) else None
        b = right[position] if position < len(right) else None
        if a is not None and b is not None and _alike(a, b):
            continue
        observed, asked = _text(b), _text(a)
        return Discrepancy(
            quantity=f"collective {position}",
            rank=rank,
            observed=observed,
            expected=asked,
            mismatched_ranks=(first, rank),
            message=f"As collective {position}, rank {rank} issues {observed}, rank {first} {asked}.",
        )
    return None


def _text(entry: Collective | None) -> str:
    if entry is None:
        return "none"
    sizes = ", ".join(
        f"{math.prod(shape)} x {dtype}" for shape, dtype in zip(entry.shapes, entry.dtypes, strict=False)
    )
    how = f" ({entry.reduction})" if entry.reduction else ""
    where = f" among ranks {', '.join(map(str, entry.group))}" if entry.group else ""
    return f"{entry.op}{how} of {sizes or 'nothing'}{where} in {entry.phase}"


def _spoken(phase: str, op: str, ranks: list[int], *, reduced: bool) -> Discrepancy:
    distinct = tuple(sorted(set(ranks)))
    why = ""
    if reduced and phase.startswith("backward"):
        why = " The contract's affine_grad is about training; an evaluation's gradients are each rank's own."
    return Discrepancy(
        quantity=f"ledger of {phase}",
        rank=distinct[0],
        observed=op,
        expected="no collective",
        mismatched=len(ranks),
        mismatched_ranks=distinct,
        message=f"In evaluation mode, {phase} issues {op} on rank {', '.join(map(str, distinct))}.{why}",
    )

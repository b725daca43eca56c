"""Properties `eval_is_local` and `collectives`: when ranks communicate, and that they do it alike.

Rules
-----
- Evaluation never communicates, neither in its forward nor in its backward: ranks evaluate different numbers
  of batches, and a collective there would hang them. So the contract `affine_grad=sum|mean` is about
  training: the gradients of weight and bias that an evaluation gives are each rank's own.
- In training, the ranks of a group issue the same collectives in the same order
  (`properties.judge.collective_agreement`). A mismatch that happens to work on one backend hangs, aborts or
  corrupts on another.
"""

from __future__ import annotations

import math

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.collective_agreement import Parting, parting
from properties.judge.completion import INCOMPLETE, complete_groups, failed_ranks
from properties.judge.property import COMPLETE, Property
from properties.observation import Collective, Observation
from properties.verdict import Discrepancy, Verdict, holds, undecided, violated


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
        for rank in group[1:]:
            parted = parting(observation.ranks[group[0]], observation.ranks[rank])
            if parted is not None:
                found.append(_mismatch(parted, group[0], rank))
                break
    if found:
        return violated("collectives", found, elements=facts)
    if facts:
        return holds("collectives", elements=facts)
    several = any(len(group) > 1 for group in case.process_groups)
    return undecided("collectives", INCOMPLETE) if several and failed_ranks(observation, expected) else None


def _mismatch(parted: Parting, first: int, rank: int) -> Discrepancy:
    observed, asked = _text(parted.second), _text(parted.first)
    return Discrepancy(
        quantity=f"collective {parted.position}",
        rank=rank,
        observed=observed,
        expected=asked,
        mismatched_ranks=(first, rank),
        message=f"As collective {parted.position}, rank {rank} issues {observed}, rank {first} {asked}.",
    )


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


EVAL_IS_LOCAL = Property(
    id="eval_is_local",
    judge=eval_is_local,
    holds="No rank communicates in evaluation mode, neither forward nor backward.",
    violation="the subject communicates in evaluation mode",
    must="evaluation must not communicate.",
    quantities="the collectives of evaluations",
    not_judged="Without a step in evaluation mode. " + COMPLETE,
)


COLLECTIVES = Property(
    id="collectives",
    judge=collectives,
    holds="The ranks of a group issue the same collectives in the same order.",
    violation="the ranks of a group issue different collectives",
    must="the ranks of a group must issue the same collectives in the same order.",
    quantities="operation, reduction, dtypes, and sizes where every rank contributes alike",
    not_judged="Send and receive. " + COMPLETE,
)

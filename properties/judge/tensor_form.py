"""Properties `dtype_and_layout` and `purity`: what the tensors are like, and what is left alone.

Rules
-----
- Asked of every expected tensor: its dtype and shape. Of an output that has elements: that it requires a
  gradient exactly if the input, weight or bias does, that it does not share the input's memory (unless the
  contract says `inplace`), and that no two of its elements share memory.
- Not asked: a particular memory format. torch 2.13's native batch norm keeps channels_last and makes
  everything else contiguous, in training and evaluation alike; but PyTorch treats the propagation of memory
  formats as a matter of speed, and an output in another dense order holds the same values. The values of
  every layout are judged by `forward`.
"""

from __future__ import annotations

from collections.abc import Iterator

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.completion import INCOMPLETE, complete_ranks, failed_ranks
from properties.judge.property import COMPLETE, Property
from properties.observation import Observation, Tensor
from properties.verdict import Discrepancy, Verdict, holds, undecided, violated

_PROPERTY = "dtype_and_layout"


def dtype_and_layout(
    case: Case, observation: Observation, expected: Expected, contract: Contract
) -> Verdict | None:
    """Return whether all tensors have the dtype, shape, requires_grad and memory that they must have."""
    ranks = complete_ranks(case, observation, expected)
    wrong: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    facts = 0
    for rank in ranks:
        seen = observation.ranks[rank].tensors
        for name, by_rank in expected.tensors.items():
            if rank not in by_rank or name not in seen:
                continue
            facts += 1
            interval, tensor = by_rank[rank], seen[name]
            for what, observed, asked in _form(tensor, interval.dtype, interval.shape):
                wrong.setdefault((what, name), []).append((rank, observed, asked))
            if name.startswith("output.") and tensor.array.size:
                for what, observed, asked in _memory(case, rank, tensor, inplace=contract.inplace):
                    wrong.setdefault((what, name), []).append((rank, observed, asked))
    if wrong:
        return violated(
            _PROPERTY, [_discrepancy(*key, entries) for key, entries in wrong.items()], elements=facts
        )
    if facts:
        return holds(_PROPERTY, elements=facts)
    return undecided(_PROPERTY, INCOMPLETE) if failed_ranks(observation, expected) else None


def purity(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
    """Return whether input, cotangent, weight, bias and earlier outputs were left unchanged."""
    allowed = "input." if contract.inplace else "\0"
    wrong: dict[str, list[int]] = {}
    ranks = complete_ranks(case, observation, expected)
    for rank in ranks:
        for name in observation.ranks[rank].modified:
            if not name.startswith(allowed):
                wrong.setdefault(name, []).append(rank)
    if wrong:
        return violated("purity", [_modified(*item) for item in wrong.items()], elements=len(ranks))
    if ranks:
        return holds("purity", elements=len(ranks))
    return undecided("purity", INCOMPLETE) if failed_ranks(observation, expected) else None


def _form(tensor: Tensor, dtype: str, shape: tuple[int, ...]) -> Iterator[tuple[str, str, str]]:
    if tensor.dtype != dtype:
        yield "dtype", tensor.dtype, dtype
    if tensor.shape != shape:
        yield "shape", str(tensor.shape), str(shape)


def _memory(case: Case, rank: int, tensor: Tensor, *, inplace: bool) -> Iterator[tuple[str, str, str]]:
    differentiable = (
        case.input_requires_grad(rank)
        or (case.has_weight and "weight" not in case.frozen)
        or (case.has_bias and "bias" not in case.frozen)
    )
    if tensor.requires_grad != differentiable:
        yield "requires_grad", str(tensor.requires_grad), str(differentiable)
    if tensor.aliases_input and not inplace:
        yield "memory", "shared with the input", "its own"
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.strides, strict=False)):
        yield "strides", str(tensor.strides), "no two elements in one place"


def _discrepancy(what: str, name: str, entries: list[tuple[int, str, str]]) -> Discrepancy:
    rank, observed, asked = entries[0]
    return Discrepancy(
        quantity=f"{what} of {name}",
        rank=rank,
        observed=observed,
        expected=asked,
        mismatched=len(entries),
        elements=len(entries),
        mismatched_ranks=tuple(entry[0] for entry in entries),
        message=f"The {what} of {name} is {observed} on rank {rank}, but must be {asked}.",
    )


def _modified(name: str, ranks: list[int]) -> Discrepancy:
    listed = ", ".join(map(str, ranks))
    return Discrepancy(
        quantity=name,
        rank=ranks[0],
        observed="modified",
        expected="unchanged",
        mismatched_ranks=tuple(ranks),
        message=f"{name} was modified in place on rank {listed}.",
    )


DTYPE_AND_LAYOUT = Property(
    id="dtype_and_layout",
    judge=dtype_and_layout,
    holds=(
        "Every tensor has the dtype and shape that it must have, and every output its own memory, and "
        "requires a gradient exactly if the input, weight or bias does."
    ),
    violation="a tensor has not the dtype, shape or memory that it must have",
    must="every tensor must have the dtype, shape and memory of torch's batch norm.",
    quantities="every expected tensor",
    not_judged="The memory format. " + COMPLETE,
)


PURITY = Property(
    id="purity",
    judge=purity,
    holds="Input, cotangent, weight, bias and earlier outputs are left as they were.",
    violation="the subject modified a tensor that is not its own",
    must="the subject must leave input, cotangent, weight and bias as they are.",
    quantities="the storages of these tensors",
    not_judged="The input where the contract says `inplace`. " + COMPLETE,
)

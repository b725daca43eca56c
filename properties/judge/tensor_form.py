"""Properties `dtype_and_layout` and `purity`: what the tensors are like, and what is left alone.

Rules
-----
- Asked of every expected tensor: its dtype and shape. Of an output that has elements: that it requires a
  gradient exactly if the input, weight or bias does, that it does not share the input's memory (unless the
  contract says `inplace`), and that no two of its elements share memory.
- Of the output of a contiguous or channels_last input that it is in that memory format, as torch's batch norm
  has it, unless the contract says `memory_format=any`: a network in channels_last that one layer turns to
  contiguous runs its convolutions there. Sizes of 1 tell no format. Of any other input nothing is asked, and
  nothing of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.completion import INCOMPLETE, complete_ranks, failed_ranks
from properties.judge.property import COMPLETE, Property
from properties.observation import Observation, RankObservation, Tensor
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
                step = int(name.rpartition(".")[2])
                for what, observed, asked in _memory(case, rank, step, tensor, contract):
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

    def names(seen: RankObservation) -> Iterator[str]:
        return (name for name in seen.modified if not name.startswith(allowed))

    return noted("purity", case, observation, expected, names=names, describe=_modified)


def noted(
    property_id: str,
    case: Case,
    observation: Observation,
    expected: Expected,
    *,
    names: Callable[[RankObservation], Iterable[str]],
    describe: Callable[[str, list[int]], Discrepancy],
) -> Verdict | None:
    """Return a violation for each of the `names` that a rank noted of tensors, with the ranks that did."""
    wrong: dict[str, list[int]] = {}
    ranks = complete_ranks(case, observation, expected)
    for rank in ranks:
        for name in names(observation.ranks[rank]):
            wrong.setdefault(name, []).append(rank)
    if wrong:
        return violated(property_id, [describe(*item) for item in wrong.items()], elements=len(ranks))
    if ranks:
        return holds(property_id, elements=len(ranks))
    return undecided(property_id, INCOMPLETE) if failed_ranks(observation, expected) else None


def _form(tensor: Tensor, dtype: str, shape: tuple[int, ...]) -> Iterator[tuple[str, str, str]]:
    if tensor.dtype != dtype:
        yield "dtype", tensor.dtype, dtype
    if tensor.shape != shape:
        yield "shape", str(tensor.shape), str(shape)


def _memory(
    case: Case, rank: int, step: int, tensor: Tensor, contract: Contract
) -> Iterator[tuple[str, str, str]]:
    differentiable = case.steps[step].grad_mode == "enabled" and (
        case.input_requires_grad(rank) or case.trains("weight", step) or case.trains("bias", step)
    )
    if tensor.requires_grad != differentiable:
        yield "requires_grad", str(tensor.requires_grad), str(differentiable)
    if tensor.aliases_input and not contract.inplace:
        yield "memory", "shared with the input", "its own"
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.strides, strict=False)):
        yield "strides", str(tensor.strides), "no two elements in one place"
    elif (
        contract.memory_format == "preserve"
        and case.input_layout in ("contiguous", "channels_last")
        and not lies_as(case.input_layout, tensor)
    ):
        yield "memory format", f"strides {tensor.strides}", f"{case.input_layout}, as the input's"


def lies_as(layout: str, tensor: Tensor) -> bool:
    """Return whether a tensor is dense in this memory format, or its strides are not known.

    Axes of size 1 have any stride.
    """
    if len(tensor.strides) != len(tensor.shape):
        return True
    axes = range(len(tensor.shape))
    order = (0, *axes[2:], 1) if layout == "channels_last" else tuple(axes)
    stride = 1
    for axis in reversed(order):
        if tensor.shape[axis] > 1 and tensor.strides[axis] != stride:
            return False
        stride *= tensor.shape[axis]
    return True


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
        "Every tensor has the dtype and shape that it must have; every output has its own memory, in the "
        "memory format of the input, and requires a gradient exactly if the input, weight or bias does."
    ),
    violation="a tensor has not the dtype, shape or memory that it must have",
    must="every tensor must have the dtype, shape and memory of torch's batch norm.",
    quantities="every expected tensor",
    not_judged=(
        "The memory format, where the input is neither contiguous nor channels_last, where the contract says "
        "`memory_format=any`, and of gradients. " + COMPLETE
    ),
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

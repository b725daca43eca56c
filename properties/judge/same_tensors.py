"""Property `identity`: parameters and buffers stay the tensors that they were, where they were in memory.

An optimizer holds the parameters, and `torch.nn.parallel.DistributedDataParallel`, an average of the weights
or a captured CUDA graph hold the buffers: who puts another tensor in their place, or another storage under
them, goes on alone, and no state dict shows it. torch's batch norm writes into the tensors that it has.
"""

from __future__ import annotations

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.property import COMPLETE, Property
from properties.judge.tensor_form import noted
from properties.observation import Observation
from properties.verdict import Discrepancy, Verdict


def identity(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
    """Return whether parameters and buffers are the same tensors after every step."""
    if not contract.identity:
        return None
    return noted(
        "identity", case, observation, expected, names=lambda seen: seen.replaced, describe=_replaced
    )


def _replaced(name: str, ranks: list[int]) -> Discrepancy:
    tensor, _, step = name.rpartition(".")
    return Discrepancy(
        quantity=name,
        rank=ranks[0],
        observed="another tensor",
        expected="the same tensor",
        mismatched_ranks=tuple(ranks),
        message=f"{tensor} has become another tensor in step {step} on rank {', '.join(map(str, ranks))}.",
    )


IDENTITY = Property(
    id="identity",
    judge=identity,
    holds="Weight, bias and running buffers stay the same tensors, in the same memory.",
    violation="the subject put another tensor in the place of a parameter or buffer",
    must="the subject must write into the buffers that it has, and leave the parameters where they are.",
    quantities="`weight`, `bias`, `running_mean`, `running_var`, `num_batches_tracked` after every step",
    not_judged="Where the contract says `identity=no`. " + COMPLETE,
)

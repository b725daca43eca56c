"""Completion: which ranks gave back everything, so that their tensors and ledgers can be judged.

A group in which a rank raised, hung or died tells of that ending and of nothing else: the property `ending`
(or `refusal`) reports it, and the properties of tensors do not look at the group.
"""

from __future__ import annotations

from properties.case import Case
from properties.expectation.expected import Expected
from properties.observation import Observation

INCOMPLETE = "not every rank of the process group returned"


def complete_groups(case: Case, observation: Observation, expected: Expected) -> tuple[tuple[int, ...], ...]:
    """Return the process groups all of whose ranks returned and none of whose ranks had to refuse."""
    return tuple(
        group
        for group in case.process_groups
        if all(observation.ranks[rank].ending == "returned" for rank in group)
        and not any(rank in expected.refusals for rank in group)
    )


def complete_ranks(case: Case, observation: Observation, expected: Expected) -> tuple[int, ...]:
    """Return the ranks of the complete groups, ascending."""
    groups = complete_groups(case, observation, expected)
    return tuple(sorted(rank for group in groups for rank in group))


def failed_ranks(observation: Observation, expected: Expected) -> tuple[int, ...]:
    """Return the ranks that did not return although they had nothing to refuse."""
    return tuple(
        seen.rank
        for seen in observation.ranks
        if seen.ending != "returned" and seen.rank not in expected.refusals
    )

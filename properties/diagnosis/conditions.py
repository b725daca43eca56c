"""Conditions: what a failing case or its observation shows, as symptoms ask for it."""

from __future__ import annotations

from properties.diagnosis.symptom import Seen
from properties.judge.bits import nans
from properties.judge.collective_agreement import parting
from properties.judge.tensor_form import lies_as


def empty_rank(seen: Seen) -> bool:
    """Return whether some rank is without values while its group has some."""
    return any(
        case.total_of(group) > 0 and any(case.count_of(rank) == 0 for rank in group)
        for case in seen.case.by_step
        for group in case.process_groups
    )


def empty_group(seen: Seen) -> bool:
    """Return whether all ranks of some group are without values."""
    return any(case.total_of(group) == 0 for case in seen.case.by_step for group in case.process_groups)


def half(seen: Seen) -> bool:
    """Return whether the input is of a half dtype."""
    return seen.case.dtype in ("float16", "bfloat16")


def always(seen: Seen) -> bool:
    """Return True: what is violated says it all."""
    del seen
    return True


def evaluates(seen: Seen) -> bool:
    """Return whether some step is an evaluation."""
    return any(step.mode == "eval" for step in seen.case.steps)


def most_values(seen: Seen) -> int:
    """Return the most values a channel on any rank."""
    return max(case.count_of(rank) for case in seen.case.by_step for rank in range(case.world_size))


def waits(seen: Seen) -> bool:
    """Return whether some rank waited until its time was over while another came to its end."""
    endings = {rank.ending for rank in seen.observation.ranks}
    return "timeout" in endings and "returned" in endings


def mismatched(seen: Seen) -> bool:
    """Return whether two ranks of a group issued different collectives, or different numbers of them."""
    ranks = seen.observation.ranks
    pairs = ((group[0], rank) for group in seen.case.process_groups for rank in group[1:])
    return any(parting(ranks[first], ranks[rank]) for first, rank in pairs if max(first, rank) < len(ranks))


def raised(seen: Seen) -> bool:
    """Return whether an exception left the subject on some rank."""
    return any(rank.ending == "raised" for rank in seen.observation.ranks)


def one_value(seen: Seen) -> bool:
    """Return whether some rank has one value a channel while its group has more."""
    return any(
        case.total_of(group) > 1 and any(case.count_of(rank) == 1 for rank in group)
        for case in seen.case.by_step
        for group in case.process_groups
    )


def not_a_number(seen: Seen) -> bool:
    """Return whether some rank gave an output that is NaN although no input is."""
    return not seen.case.specials and any(
        bool(nans(tensor).any())
        for rank in seen.observation.ranks
        for name, tensor in rank.tensors.items()
        if name.startswith("output.")
    )


def single(seen: Seen) -> bool:
    """Return whether some group has one value a channel."""
    return any(case.total_of(group) == 1 for case in seen.case.by_step for group in case.process_groups)


def other_memory_format(seen: Seen) -> bool:
    """Return whether some output is in another memory format than its contiguous or channels_last input."""
    layout = seen.case.input_layout
    return layout in ("contiguous", "channels_last") and any(
        not lies_as(layout, tensor)
        for rank in seen.observation.ranks
        for name, tensor in rank.tensors.items()
        if name.startswith("output.")
    )


def wider_output(seen: Seen) -> bool:
    """Return whether an output of a half input is stored in a wider dtype."""
    return half(seen) and any(
        tensor.dtype in ("float32", "float64")
        for rank in seen.observation.ranks
        for name, tensor in rank.tensors.items()
        if name.startswith("output.")
    )

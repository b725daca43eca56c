"""Admission: whether a case lies in a domain, and what of the domain no case can reach.

The counterpart of `properties.generation.decoding`, which draws inside a domain: this module says, of any
case from anywhere, whether the subject promised to support it.
"""

from __future__ import annotations

from properties.case import Case, Step
from properties.domain import (
    Batches,
    Domain,
    Epsilon,
    Groups,
    ParamDtype,
    Schedule,
    Size,
    Spatial,
    layouts_of,
)
from properties.values.period import is_large


def admits(domain: Domain, case: Case) -> bool:
    """Return whether `case` lies in `domain`."""
    return not objections(domain, case)


def objections(domain: Domain, case: Case) -> tuple[str, ...]:
    """Return the keys of `domain` that exclude `case`, in their order; none if it lies in the domain."""
    inputs, cotangents = layouts_of(domain)
    answers = {
        "dtypes": case.dtype in domain.dtypes,
        "param_dtypes": bool(set(param_kinds(case)) & set(domain.param_dtypes)),
        "dims": len(case.spatial[0]) + 2 in domain.dims,
        "world_sizes": case.world_size in domain.world_sizes,
        "groups": groups_kind(case.groups) in domain.groups,
        "empty": _emptiness_rank(case) <= ("never", "some", "all").index(domain.empty),
        "batches": {batches_kind(sized) for sized in case.by_step} <= set(domain.batches),
        "spatial": {spatial_kind(sized) for sized in case.by_step} <= set(domain.spatial),
        "ragged_grad": domain.ragged_grad or not case.ragged_grad,
        "layouts": case.input_layout in inputs and case.cotangent_layout in cotangents,
        "offsets": domain.offsets or not (case.input_offset or case.cotangent_offset),
        "eps": epsilon_kind(case) in domain.eps,
        "momentum_none": case.momentum is not None or (domain.momentum_none and domain.counter),
        "affine": case.affine in domain.affine,
        "tracking": case.tracking in domain.tracking,
        "counter": domain.counter or not case.counter,
        "eval": domain.eval or all(step.mode == "train" for step in case.steps),
        "schedule": {kind for step in case.steps for kind in step_kinds(step)} <= set(domain.schedule),
        "values": {case.values, case.last_values} - {""} <= set(domain.values),
        "sizes": size_kind(case) in domain.sizes,
    }
    return tuple(key for key, admitted in answers.items() if not admitted)


def param_kinds(case: Case) -> tuple[ParamDtype, ...]:
    """Return what the case's param_dtype counts as; float32 parameters of a float32 input are both."""
    kinds: list[ParamDtype] = []
    if case.param_dtype == "float32":
        kinds.append("float32")
    if case.param_dtype == case.dtype:
        kinds.append("own")
    return tuple(kinds)


def epsilon_kind(case: Case) -> Epsilon:
    """Return what the case's eps counts as."""
    return "positive" if case.eps else "zero"


def size_kind(case: Case) -> Size:
    """Return `network` if a rank holds so much that it repeats, else `small`."""
    return "network" if any(map(is_large, case.by_step)) else "small"


def batches_kind(case: Case) -> Batches:
    """Return whether all ranks have the same batch size."""
    return "equal" if len(set(case.batches)) == 1 else "uneven"


def spatial_kind(case: Case) -> Spatial:
    """Return whether all ranks have the same spatial sizes."""
    return "equal" if len(set(case.spatial)) == 1 else "ragged"


def step_kinds(step: Step) -> tuple[Schedule, ...]:
    """Return what a step counts as; every one is plain, too."""
    kinds: list[Schedule] = ["plain"]
    if step.grad_mode != "enabled":
        kinds.append(step.grad_mode)
    if step.backward == "twice":
        kinds.append("twice")
    flags: tuple[tuple[bool, Schedule], ...] = (
        *((step.edited, "edited"), (step.rewritten, "rewritten")),
        *((step.frozen, "frozen"), (step.resized, "resized")),
    )
    return (*kinds, *(kind for flag, kind in flags if flag))


def groups_kind(groups: tuple[tuple[int, ...], ...]) -> Groups:
    """Return `world` for no explicit groups, `single` if any group is of one rank, else `disjoint`."""
    if not groups:
        return "world"
    return "single" if min(map(len, groups)) == 1 else "disjoint"


def unreachable(domain: Domain) -> tuple[str, ...]:
    """Return one clause for each value of `domain` that no case has, because another key forbids it."""
    inputs, cotangents = layouts_of(domain)
    found = []
    if "float64" in domain.dtypes and "own" not in domain.param_dtypes:
        found.append("dtypes=float64 (its parameters are float64, but param_dtypes lacks own)")
    for size in sorted(domain.dims):
        if size < 4 and ({"channels_last"} in (set(inputs), set(cotangents))):
            found.append(f"dims={size} (channels_last needs dims of 4 or 5)")
    if "channels_last" in domain.layouts and max(domain.dims) < 4:
        found.append("layouts=channels_last (it needs dims of 4 or 5)")
    if 1 in domain.world_sizes and domain.batches == ("uneven",):
        found.append("world_sizes=1 (the batches of one rank are equal)")
    if domain.spatial == ("ragged",):
        if 2 in domain.dims:
            found.append("dims=2 (it has no spatial sizes that differ)")
        if 1 in domain.world_sizes:
            found.append("world_sizes=1 (the spatial sizes of one rank are equal)")
    if domain.batches == ("equal",) and domain.empty == "some":
        found.append("empty=some (with equal batches all ranks are empty, or none)")
    if 1 in domain.world_sizes and domain.groups == ("disjoint",):
        found.append("world_sizes=1 (a group of one rank is single, not disjoint)")
    if "disjoint" in domain.groups and max(domain.world_sizes) < 2:
        found.append("groups=disjoint (it needs 2 or more ranks)")
    return tuple(found)


def _emptiness_rank(case: Case) -> int:
    """Return 0 if no rank is empty, 1 if some are but no whole group, 2 if a whole group is."""
    if any(sized.total_of(group) == 0 for sized in case.by_step for group in case.process_groups):
        return 2
    return int(any(sized.count_of(rank) == 0 for sized in case.by_step for rank in range(case.world_size)))

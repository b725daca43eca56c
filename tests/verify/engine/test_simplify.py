"""Simpler cases are possible cases, and strictly lighter ones."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings

from properties.case import Case, Special, Step
from properties.domain import Domain
from properties.generation.strategies import cases
from verify.engine.simplify import simpler, weight


@settings(max_examples=60, deadline=None, database=None)
@given(cases(Domain()))
def test_candidates_are_strictly_lighter(case: Case) -> None:
    assert all(weight(candidate) < weight(case) for candidate in simpler(case))


def descend(case: Case, fails: object) -> Case:
    while True:
        better = next((c for c in simpler(case) if fails(c)), None)  # type: ignore[operator]
        if better is None:
            return case
        case = better


def test_a_descent_without_resistance_ends_at_one_value_on_one_rank() -> None:
    case = Case(
        batches=(3, 0, 4),
        spatial=((2, 3), (2, 3), (4, 1)),
        channels=7,
        groups=((0, 2), (1,)),
        dtype="bfloat16",
        param_dtype="bfloat16",
        input_layout="permuted",
        momentum=None,
        specials=(Special("nan", 1),),
        steps=(Step(mode="eval"), Step(recompute=True)),
        seed=12,
    )
    assert descend(case, lambda c: True) == Case(batches=(1,))


def test_a_float64_case_can_become_a_float32_one() -> None:
    case = Case(dtype="float64", param_dtype="float64")
    assert descend(case, lambda c: len(c.batches) == 2).dtype == "float32"


def test_dropping_a_rank_keeps_what_belongs_to_the_others() -> None:
    case = Case(
        batches=(1, 4, 3),
        input_grad=(True, False, True),
        specials=(Special("nan", 2),),
        groups=((0, 2), (1,)),
    )
    kept = next(c for c in simpler(case) if c.batches == (4, 3))
    assert kept.input_grad == (False, True)
    assert kept.specials == (Special("nan", 1),)
    assert kept.groups == ((0,), (1,)) or kept.groups == ((1,), (0,))


def test_a_conversion_case_keeps_its_probe_and_gets_a_tree_of_one_item() -> None:
    case = Case(
        batches=(3, 2, 4),
        groups=((0, 2), (1,)),
        channels=5,
        dtype="float64",
        param_dtype="float64",
        momentum=None,
        probe="conversion",
        seed=123_456_789,
    )
    assert descend(case, lambda c: c.probe == "conversion" and c.seed in (7, 123_456_789)) == Case(
        batches=(1,), probe="conversion", seed=7
    )
    first = next(c for c in simpler(case) if c.probe == "conversion" and c.seed == 7)
    assert first == Case(batches=(2,), probe="conversion", seed=7)


def test_a_conversion_case_that_needs_its_groups_keeps_them_with_a_tree_of_one_item() -> None:
    case = Case(batches=(3, 2, 4), groups=((0, 2), (1,)), probe="conversion", seed=123_456_789)
    found = descend(case, lambda c: c.probe == "conversion" and len(c.groups) > 1)
    assert (found.batches, found.groups, found.seed) == ((1, 1), ((0,), (1,)), 0)


def test_a_case_that_fails_without_its_conversion_loses_the_probe() -> None:
    case = Case(batches=(3, 2), probe="conversion", seed=5)
    assert descend(case, lambda c: True) == Case(batches=(1,))


def test_what_one_of_many_channels_shows_becomes_a_single_channel_of_another_seed() -> None:
    def fails(case: Case) -> bool:
        return any((3 * case.seed + channel) % 7 == 5 for channel in range(case.channels))

    assert descend(Case(channels=9, seed=40), fails).channels == 1


def test_dropping_ranks_keeps_their_sizes_in_every_step_or_takes_two_samples_there() -> None:
    steps = (Step(), Step(batches=(1, 1, 0)))
    found = list(simpler(Case(batches=(0, 1, 1), steps=steps)))
    sizes = [(c.batches, c.at(1).batches) for c in found if c.world_size == 2 and len(c.steps) == 2]
    assert ((0, 1), (1, 1)) in sizes
    assert ((0, 2), (2, 2)) in sizes


def test_what_a_step_does_beside_is_undone_one_by_one() -> None:
    busy = Step(mode="eval", edited=True, rewritten=True, batches=(3, 3), backward="twice")
    case = Case(steps=(Step(), busy))
    seconds = {c.steps[1] for c in simpler(case) if len(c.steps) == 2}
    for field, value in (("edited", False), ("rewritten", False), ("batches", ()), ("backward", "now")):
        assert msgspec.structs.replace(busy, **{field: value}) in seconds
    first = next(c for c in simpler(case) if len(c.steps) == 1 and c.steps[0].mode == "eval")
    assert first.batches == (3, 3)
    assert not first.steps[0].resized


def test_what_only_a_later_step_shows_becomes_the_first_step_of_another_seed() -> None:
    def fails(case: Case) -> bool:
        return any((5 * case.seed + 3 * k) % 13 == 2 for k in range(len(case.steps)))

    assert len(descend(Case(steps=(Step(), Step(), Step()), seed=40), fails).steps) == 1

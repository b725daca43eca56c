"""Strategies: what is drawn, how often, how it shrinks, and what it costs."""

import random
from collections import Counter
from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, find, given, settings

from properties.case import DTYPES, FAMILIES, Case, Step, encode
from properties.domain import Domain, DomainError
from properties.generation.membership import admits, step_kinds
from properties.generation.networks import ACTIVATIONS
from properties.generation.strategies import cases, excluded_share, random_case
from properties.values.period import is_large
from verify.engine.simplify import simpler, weight

DRAWS = 6000


@pytest.fixture(scope="module")
def drawn():
    source = random.Random(1)
    domain = Domain(world_sizes=(1, 2, 3, 4, 5, 8))
    return [random_case(source, domain) for _ in range(DRAWS)]


def share(drawn, condition):
    return sum(map(condition, drawn)) / len(drawn)


FREQUENT = {
    "two ranks": lambda c: c.world_size == 2,
    "three or four ranks": lambda c: c.world_size in (3, 4),
    "uneven counts": lambda c: len({c.count_of(r) for r in range(c.world_size)}) > 1,
    "an empty rank": lambda c: 0 in c.batches,
    "several process groups": lambda c: len(c.groups) > 1,
    "C of 1": lambda c: c.channels == 1,
    "C of 3, 5 or 7": lambda c: c.channels in (3, 5, 7),
    "random parameters": lambda c: c.random_parameters,
    "a rank offset": lambda c: c.rank_offset > 0,
    "several steps": lambda c: len(c.steps) > 1,
    "an evaluation step": lambda c: any(s.mode == "eval" for s in c.steps),
    "half precision": lambda c: c.dtype in ("float16", "bfloat16"),
    "different layouts": lambda c: c.input_layout != c.cotangent_layout,
    "totals of 2 to 8": lambda c: any(2 <= c.total_of(g) <= 8 for g in c.process_groups),
    "momentum other than 0.1": lambda c: c.momentum != 0.1,
    "eps other than 1e-5": lambda c: c.eps != 1e-5,
    "weight without bias": lambda c: c.affine == "weight",
    "no affine": lambda c: c.affine == "none",
}
OCCASIONAL = {
    "C of 65 or 130": lambda c: c.channels in (65, 130),
    "eight ranks": lambda c: c.world_size == 8,
    "five ranks": lambda c: c.world_size == 5,
    "spatial sizes that differ by rank": lambda c: len(c.spatial) > 1,
    "a group that does not start at 0 and is not contiguous": lambda c: (1, 3) in c.groups,
    "the whole world as an explicit group": lambda c: len(c.groups) == 1 and c.world_size > 1,
    "a total of 0": lambda c: any(c.total_of(g) == 0 for g in c.process_groups),
    "a total of 1": lambda c: any(c.total_of(g) == 1 for g in c.process_groups),
    "a total above 2048": lambda c: any(c.total_of(g) > 2048 for g in c.process_groups),
    "momentum None": lambda c: c.momentum is None,
    "momentum 0": lambda c: c.momentum == 0,
    "momentum 1": lambda c: c.momentum == 1,
    "eps 1": lambda c: c.eps == 1,
    "tracking off": lambda c: not c.tracking,
    "strided buffers": lambda c: c.strided_buffers,
    "a frozen parameter": lambda c: bool(c.frozen),
    "an input without gradient": lambda c: bool(c.input_grad),
    "a special": lambda c: bool(c.specials),
    "two forwards before a backward": lambda c: any(s.backward == "deferred" for s in c.steps[:-1]),
    "accumulation": lambda c: any(s.accumulate for s in c.steps),
    "an odd last channel": lambda c: c.last_values != "" and c.channels >= 12,
    "a constant channel among others": lambda c: c.last_values == "constant",
    "recomputation": lambda c: any(s.recompute for s in c.steps),
    "an expanded cotangent": lambda c: c.cotangent_layout == "expanded",
    "a sliced input": lambda c: c.input_layout == "sliced",
    "a cropped input": lambda c: c.input_layout == "cropped",
    "a split input": lambda c: c.input_layout == "split",
    "a cropped cotangent": lambda c: c.cotangent_layout == "cropped",
    "a split cotangent": lambda c: c.cotangent_layout == "split",
    "channels_last and contiguous": lambda c: (
        {c.input_layout, c.cotangent_layout} == {"channels_last", "contiguous"}
    ),
    "a wrong input": lambda c: bool(c.wrong),
    "a repeatable probe": lambda c: c.probe == "repeatable",
    "a scaling probe": lambda c: c.probe == "scaling",
    "an empty rank in half precision": lambda c: 0 in c.batches and c.dtype in ("float16", "bfloat16"),
    "half buffers": lambda c: c.param_dtype in ("float16", "bfloat16"),
}


EXTREMES = ("tiny_spread", "constant", "subnormal", "near_overflow")
FIFTIETH = {
    **{f"{name} values": lambda c, name=name: c.values == name for name in EXTREMES},
    **{f"a last channel of {name}": lambda c, name=name: c.last_values == name for name in EXTREMES},
    **{kind: lambda c, kind=kind: any(kind in step_kinds(s) for s in c.steps) for kind in Domain().schedule},
    "an input inside its storage": lambda c: c.input_offset > 0,
    "a dense channels_last one": lambda c: c.input_offset > 0 and c.input_layout == "channels_last",
    "a cotangent inside its storage": lambda c: c.cotangent_offset > 0,
    "a wide running variance": lambda c: c.variance_exponent > 0,
    "a small one": lambda c: c.variance_exponent < 0,
    "any eps": lambda c: c.eps not in (0.0, 1e-12, 1e-8, 1e-5, 1e-3, 0.1, 1.0),
    "any momentum": lambda c: c.momentum not in (None, 0.0, 0.1, 0.3, 1.0),
    "a batch of any size": lambda c: any(n in range(9, 65) and n not in (17, 33) for n in c.batches),
    "257 to 2048 values": lambda c: any(256 < c.count_of(r) <= 2048 for r in range(c.world_size)),
    "a training step without gradients": lambda c: any(
        s.mode == "train" and s.grad_mode != "enabled" for s in c.steps
    ),
    "an evaluation without gradients": lambda c: any(
        s.mode == "eval" and s.grad_mode != "enabled" for s in c.steps
    ),
    "parameters frozen after a step": lambda c: any(s.frozen for s in c.steps[1:]),
    "other parameters in the same mode": lambda c: any(
        b.rewritten and a.mode == b.mode for a, b in pairwise(c.steps)
    ),
    "other parameters after a step without a backward": lambda c: any(
        b.rewritten and a.backward == "none" for a, b in pairwise(c.steps)
    ),
    "fewer samples later": lambda c: any(s.batches and sum(s.batches) < sum(c.batches) for s in c.steps),
    "more samples later": lambda c: any(s.batches and sum(s.batches) > sum(c.batches) for s in c.steps),
    "other spatial sizes later": lambda c: any(s.spatial for s in c.steps),
}


@pytest.mark.parametrize("name", FIFTIETH)
def test_what_must_not_be_rare_is_drawn_in_every_fiftieth_case(drawn, name):
    assert share(drawn, FIFTIETH[name]) > 0.02


@pytest.mark.parametrize("name", FREQUENT)
def test_what_most_faults_need_is_drawn_in_every_tenth_case(drawn, name):
    assert share(drawn, FREQUENT[name]) > 0.1


@pytest.mark.parametrize("name", OCCASIONAL)
def test_what_some_faults_need_is_drawn_in_every_hundred_and_fiftieth_case(drawn, name):
    assert share(drawn, OCCASIONAL[name]) > 1 / 150


def test_an_eps_of_zero_is_drawn_where_the_domain_has_it_and_all_else_is_as_without():
    both, without = Domain(eps=("positive", "zero")), Domain()
    pairs = [[random_case(random.Random(seed), one) for one in (both, without)] for seed in range(600)]
    assert 1 / 16 < share([wide for wide, _ in pairs], lambda c: c.eps == 0) < 1 / 4
    for wide, narrow in pairs:
        assert narrow == (msgspec.structs.replace(wide, eps=narrow.eps) if wide.eps == 0 else wide)
        assert narrow.eps > 0
    zero = Domain(eps=("zero",))
    assert {random_case(random.Random(seed), zero).eps for seed in range(50)} == {0.0}


def test_every_value_of_the_closed_lists_is_drawn(drawn):
    assert {c.dtype for c in drawn} == set(DTYPES)
    assert {c.values for c in drawn} == set(FAMILIES)
    assert {len(c.spatial[0]) for c in drawn} == {0, 1, 2, 3}
    assert {c.channels for c in drawn} >= set(range(1, 9))
    assert {c.wrong for c in drawn} == {"", "channels", "dims", "integer"}
    assert {s.kind for c in drawn for s in c.specials} == {"nan", "inf", "-inf", "zero", "huge"}
    assert any(c.total_of(g) > 65536 for c in drawn for g in c.process_groups)


def elements_of(case):
    return [case.count_of(rank) * case.channels for rank in range(case.world_size)]


def test_cases_are_small_on_average(drawn):
    elements = sorted(sum(elements_of(c)) for c in drawn if not is_large(c))
    assert elements[len(elements) // 2] < 400
    assert sum(elements) / DRAWS < 5000
    assert elements[-1] <= 200_000


def test_one_case_in_a_hundred_has_the_sizes_of_a_network(drawn):
    large = [c for c in drawn if is_large(c)]
    assert 1 / 140 < len(large) / DRAWS < 1 / 60
    assert max(max(elements_of(c)) for c in large) <= 2**21


def test_sizes_of_networks_alone_go_to_where_an_index_no_longer_fits_a_float():
    domain = Domain(sizes=("network",))
    cases = [random_case(random.Random(seed), domain) for seed in range(2000)]
    assert all(is_large(c) for c in cases)
    largest = [max(elements_of(c)) for c in cases]
    assert 2**24 < max(largest) <= 2**25
    assert sum(n > 2**24 for n in largest) > 20
    assert max(sum(elements_of(c)) for c in cases) < 1.5 * 2**25
    known = {(one.channels, len(one.spatial)) for one in ACTIVATIONS}
    assert {(c.channels, len(c.spatial[0])) for c in cases} == known
    assert any(0 in c.batches for c in cases)
    assert {c.world_size for c in cases} >= {1, 2, 3, 4}


def test_where_no_sizes_of_networks_are_drawn_all_other_cases_are_as_with_them():
    small = Domain(sizes=("small",))
    for seed in range(600):
        with_them = random_case(random.Random(seed), Domain())
        without = random_case(random.Random(seed), small)
        assert is_large(with_them) or with_them == without


def test_probes_are_about_one_case_in_sixteen_each(drawn):
    counts = Counter(c.probe for c in drawn)
    for probe in ("repeatable", "scaling"):
        assert 1 / 20 < counts[probe] / DRAWS < 1 / 13


def test_rare_world_sizes_are_rare(drawn):
    for size in (5, 8):
        assert 1 / 200 < share(drawn, lambda c, size=size: c.world_size == size) < 1 / 30


def test_world_sizes_and_probes_can_be_overridden():
    source = random.Random(0)
    several = [random_case(source, Domain(), world_sizes=(7,), probes=False) for _ in range(300)]
    assert {c.world_size for c in several} == {7}
    assert {c.probe for c in several} == {""}


@given(cases(Domain(dtypes=("bfloat16",), empty="some", eval=False)))
def test_hypothesis_draws_in_the_domain(case):
    assert admits(Domain(dtypes=("bfloat16",), empty="some", eval=False), case)


@given(cases(Domain(ragged_grad=True)))
@settings(max_examples=200)
def test_ragged_gradients_are_drawn_where_the_domain_has_them(case):
    assert len(case.input_grad) in (0, case.world_size)
    if case.ragged_grad:
        assert case.world_size > 1


def test_ragged_gradients_are_drawn_only_where_the_domain_has_them(drawn):
    assert not any(c.ragged_grad for c in drawn)
    source, domain = random.Random(0), Domain(ragged_grad=True)
    assert share([random_case(source, domain) for _ in range(1000)], lambda c: c.ragged_grad) > 0.03


@pytest.mark.parametrize(
    "domain",
    [
        {"dtypes": ("float64",), "param_dtypes": ("float32",)},
        {"layouts": ("channels_last", "sliced"), "dims": (2, 3)},
        {"layouts": ("channels_last", "expanded"), "dims": (3,)},
    ],
)
def test_an_impossible_domain_raises(domain):
    with pytest.raises(DomainError, match="at least one case"):
        cases(Domain(**domain))
    with pytest.raises(DomainError):
        random_case(random.Random(0), Domain(**domain))


@pytest.mark.parametrize(
    ("domain", "low", "high"),
    [
        ({}, 0, 0),
        ({"dtypes": ("float32",)}, 0.45, 0.65),
        ({"empty": "never"}, 0.15, 0.35),
        ({"world_sizes": (2,)}, 0.5, 0.75),
        ({"dtypes": ("float64",), "world_sizes": (1,), "groups": ("single",)}, 0.97, 1),
    ],
)
def test_the_excluded_share_is_that_of_the_default_domains_cases(domain, low, high):
    assert low <= excluded_share(Domain(**domain)) <= high


SHRINKS = {
    "unequal counts": (
        lambda c: any(len({c.count_of(r) for r in g}) > 1 for g in c.process_groups),
        [Case(batches=(1, 2)), Case(batches=(2, 1))],
    ),
    "two ranks in a group": (
        lambda c: any(len(g) > 1 for g in c.process_groups),
        [Case(batches=(1, 1))],
    ),
    "bfloat16 with an empty rank": (
        lambda c: c.dtype == "bfloat16" and 0 in c.batches and any(c.batches),
        [Case(batches=b, dtype="bfloat16") for b in ((0, 1), (1, 0))],
    ),
    "many channels": (lambda c: c.channels > 64, [Case(batches=(1,), channels=65)]),
    "three ranks in groups": (
        lambda c: c.world_size == 3 and len(c.groups) > 1,
        [Case(batches=(1, 1, 1), groups=g) for g in (((0,), (1, 2)), ((0, 2), (1,)), ((0, 1), (2,)))],
    ),
    "evaluation with momentum None": (
        lambda c: c.momentum is None and any(s.mode == "eval" for s in c.steps),
        [Case(batches=(1,), momentum=None, steps=(Step(mode="eval"),))],
    ),
    "two forwards before a backward": (
        lambda c: any(s.backward == "deferred" for s in c.steps[:-1]),
        [Case(batches=(1,), steps=(Step(backward="deferred"), Step()))],
    ),
    "a random weight without bias": (
        lambda c: c.random_parameters and c.affine == "weight" and c.world_size > 1,
        [Case(batches=(1, 1), random_parameters=True, affine="weight")],
    ),
    "a channels_last cotangent alone": (
        lambda c: c.cotangent_layout == "channels_last" != c.input_layout,
        [Case(batches=(1,), spatial=((1, 1),), cotangent_layout="channels_last")],
    ),
}


@pytest.mark.parametrize("name", SHRINKS)
def test_a_failing_case_shrinks_to_a_minimal_one(name):
    fails, minimal = SHRINKS[name]
    calls = 0

    def counted(case):
        nonlocal calls
        calls += 1
        return fails(case)

    found = find(
        cases(Domain()),
        counted,
        settings=settings(
            max_examples=5000, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        ),
        random=random.Random(0),
    )
    while found not in minimal:  # what Hypothesis cannot lower byte by byte, the descent does
        better = next((case for case in simpler(found) if counted(case)), None)
        if better is None:
            break
        found = better
    assert found in minimal or weight(found) < weight(minimal[0]), encode(found)
    assert calls < 1500

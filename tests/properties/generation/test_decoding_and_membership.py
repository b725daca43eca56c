"""Which cases a domain admits, and that drawing and admission agree."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties.case import Case, Step
from properties.domain import Domain
from properties.generation.byte_tables import table, tables_for
from properties.generation.decoding import TOTAL_BYTES, case_from
from properties.generation.membership import admits, groups_kind, objections, unreachable


@pytest.mark.parametrize(
    ("key", "domain", "outside", "inside"),
    [
        ("dtypes", {"dtypes": ("float16",)}, {}, {"dtype": "float16"}),
        ("param_dtypes", {"param_dtypes": ("own",)}, {"dtype": "float16"}, {}),
        ("param_dtypes", {"param_dtypes": ("float32",)}, {"dtype": "float64", "param_dtype": "float64"}, {}),
        ("dims", {"dims": (3,)}, {}, {"spatial": ((2,),)}),
        ("world_sizes", {"world_sizes": (3,)}, {}, {"batches": (1, 1, 1)}),
        ("groups", {"groups": ("world",)}, {"groups": ((0, 1),)}, {}),
        ("groups", {"groups": ("disjoint",)}, {"groups": ((0,), (1,))}, {"groups": ((0, 1),)}),
        ("empty", {"empty": "never"}, {"batches": (0, 1)}, {}),
        ("empty", {"empty": "some"}, {"batches": (0, 1), "groups": ((0,), (1,))}, {"batches": (0, 1)}),
        ("empty", {"empty": "some"}, {"batches": (0, 0)}, {"batches": (0, 1)}),
        ("ragged_grad", {}, {"input_grad": (True, False)}, {"input_grad": (False, False)}),
        ("layouts", {"layouts": ("contiguous", "expanded")}, {"input_layout": "permuted"}, {}),
        ("layouts", {"layouts": ("contiguous", "sliced")}, {"cotangent_layout": "expanded"}, {}),
        ("empty", {"empty": "never"}, {"steps": (Step(), Step(batches=(0, 2)))}, {}),
        ("batches", {"batches": ("equal",)}, {"batches": (1, 2)}, {"batches": (3, 3)}),
        ("batches", {"batches": ("equal",)}, {"steps": (Step(), Step(batches=(1, 2)))}, {}),
        ("batches", {"batches": ("uneven",)}, {}, {"batches": (0, 2)}),
        ("spatial", {"spatial": ("equal",)}, {"spatial": ((2,), (3,))}, {"spatial": ((2,), (2,))}),
        ("spatial", {"spatial": ("ragged",)}, {}, {"spatial": ((2,), (3,))}),
        ("offsets", {"offsets": False}, {"input_offset": 1}, {}),
        ("offsets", {"offsets": False}, {"cotangent_offset": 1}, {}),
        ("counter", {"counter": False}, {}, {"counter": False}),
        ("momentum_none", {"counter": False}, {"momentum": None, "counter": False}, {"counter": False}),
        ("schedule", {"schedule": ("plain",)}, {"steps": (Step(backward="twice"),)}, {}),
        ("schedule", {"schedule": ("plain", "edited")}, {"steps": (Step(frozen=True),)}, {}),
        (
            "schedule",
            {"schedule": ("plain", "no_grad")},
            {"steps": (Step(backward="none", grad_mode="inference"),)},
            {"steps": (Step(backward="none", grad_mode="no_grad"),)},
        ),
        ("schedule", {"schedule": ("plain",)}, {"steps": (Step(), Step(batches=(3, 3)))}, {}),
        ("schedule", {"schedule": ("plain",)}, {"steps": (Step(), Step(rewritten=True))}, {}),
        ("momentum_none", {"momentum_none": False}, {"momentum": None}, {}),
        ("affine", {"affine": ("none",)}, {}, {"affine": "none"}),
        ("tracking", {"tracking": (True,)}, {"tracking": False}, {}),
        ("eval", {"eval": False}, {"steps": (Step(), Step(mode="eval"))}, {}),
        ("values", {"values": ("mixed",)}, {}, {"values": "mixed"}),
        ("sizes", {"sizes": ("small",)}, {"batches": (1, 2**17 + 1)}, {"batches": (2**17, 2**17)}),
        ("sizes", {"sizes": ("network",)}, {}, {"batches": (1, 129), "channels": 1024}),
    ],
)
def test_each_key_excludes_what_it_names(key, domain, outside, inside):
    assert objections(Domain(**domain), Case(**outside)) == (key,)
    assert admits(Domain(**domain), Case(**inside))


@pytest.mark.parametrize(
    ("groups", "kind"),
    [((), "world"), (((0, 1),), "disjoint"), (((0, 2), (1, 3)), "disjoint"), (((0,), (1, 2)), "single")],
)
def test_kinds_of_groups(groups, kind):
    assert groups_kind(groups) == kind


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ({}, []),
        ({"param_dtypes": ("float32",)}, ["float64"]),
        ({"layouts": ("channels_last",)}, ["dims=2", "dims=3"]),
        ({"dims": (2, 3)}, ["channels_last"]),
        ({"groups": ("disjoint",)}, ["world_sizes=1"]),
        ({"world_sizes": (1,)}, ["disjoint"]),
        ({"batches": ("uneven",), "world_sizes": (1, 2)}, ["world_sizes=1"]),
        ({"batches": ("equal",), "empty": "some"}, ["empty=some"]),
        ({"spatial": ("ragged",), "world_sizes": (1, 2)}, ["dims=2", "world_sizes=1"]),
    ],
)
def test_what_no_case_can_have_is_said(domain, words):
    clauses = unreachable(Domain(**domain))
    assert len(clauses) == len(words)
    for clause, word in zip(clauses, words, strict=True):
        assert word in clause


@given(st.dictionaries(st.integers(), st.floats(0.01, 100), min_size=1, max_size=30))
def test_a_table_gives_every_value_a_share_near_its_weight_in_order(weights):
    entries = table(weights.items())
    assert len(entries) == 256
    assert list(dict.fromkeys(entries)) == list(weights)
    total = sum(weights.values())
    for value, weight in weights.items():
        share = entries.count(value)
        assert share >= 1
        assert abs(share - 1 - (256 - len(weights)) * weight / total) <= 1


DOMAINS = st.builds(
    Domain,
    dtypes=st.sets(st.sampled_from(Domain().dtypes), min_size=1).map(tuple),
    param_dtypes=st.sampled_from([("float32", "own"), ("own",), ("own", "float32")]),
    dims=st.sets(st.sampled_from([2, 3, 4, 5]), min_size=1).map(tuple),
    world_sizes=st.sets(st.sampled_from([2, 3, 4, 5, 8, 17, 64]), min_size=1).map(tuple),
    groups=st.sets(st.sampled_from(["world", "disjoint", "single"]), min_size=1).map(tuple),
    empty=st.sampled_from(["never", "some", "all"]),
    batches=st.sets(st.sampled_from(["equal", "uneven"]), min_size=1).map(tuple),
    offsets=st.booleans(),
    counter=st.booleans(),
    schedule=st.sets(st.sampled_from(Domain().schedule)).map(lambda s: ("plain", *(s - {"plain"}))),
    ragged_grad=st.booleans(),
    layouts=st.sets(st.sampled_from(Domain().layouts), max_size=3).map(
        lambda s: (*s - {"permuted"}, "permuted")
    ),
    momentum_none=st.booleans(),
    affine=st.sets(st.sampled_from(["both", "weight", "none"]), min_size=1).map(tuple),
    tracking=st.sets(st.booleans(), min_size=1).map(tuple),
    eval=st.booleans(),
    values=st.sets(st.sampled_from(Domain().values), min_size=1).map(tuple),
    sizes=st.sets(st.sampled_from(Domain().sizes), min_size=1).map(tuple),
)


NETWORKS = Domain(sizes=("network",))


@given(DOMAINS, st.integers(0, 2**32), st.booleans())
def test_no_case_outside_the_domain_is_ever_drawn(domain, seed, probes):
    source = random.Random(seed)
    tables = tables_for(domain, probes=probes, rare_world_sizes=(5, 8))
    for _ in range(20):
        case = case_from(source.randbytes(TOTAL_BYTES), tables)
        assert objections(domain, case) == ()
        assert probes or case.probe == ""


@pytest.mark.parametrize("byte", [0, 255])
def test_extreme_bytes_are_cases_of_the_domain_too(byte):
    for domain in (Domain(), Domain(empty="some", world_sizes=(2, 64)), Domain(groups=("single",)), NETWORKS):
        tables = tables_for(domain, probes=True, rare_world_sizes=())
        assert admits(domain, case_from(bytes([byte] * TOTAL_BYTES), tables))


def test_zeros_are_the_simplest_case():
    tables = tables_for(Domain(world_sizes=(2, 3)), probes=True, rare_world_sizes=())
    assert case_from(bytes(TOTAL_BYTES), tables) == Case(batches=(1, 1))


def test_every_byte_matters_and_each_falls_to_zero_by_itself():
    """Lowering any one byte of any case to 0 gives a case again: no byte is held up by another."""
    source, domain = random.Random(0), Domain(world_sizes=(2, 3, 4, 8))
    tables = tables_for(domain, probes=True, rare_world_sizes=())
    matters = set()
    for _ in range(400):
        choices = bytearray(source.randbytes(TOTAL_BYTES))
        whole = case_from(bytes(choices), tables)
        for position in range(TOTAL_BYTES):
            lowered = choices.copy()
            lowered[position] = 0
            simpler = case_from(bytes(lowered), tables)
            assert admits(domain, simpler)
            if simpler != whole:
                matters.add(position)
    assert matters == set(range(TOTAL_BYTES))


def test_conversion_is_drawn_only_where_it_is_asked_for_and_changes_nothing_else():
    source = random.Random(0)
    plain = tables_for(Domain(), probes=True, rare_world_sizes=())
    asked = tables_for(Domain(), probes=True, rare_world_sizes=(), conversion=True)
    converting = 0
    for _ in range(400):
        choices = source.randbytes(TOTAL_BYTES)
        without, case = case_from(choices, plain), case_from(choices, asked)
        assert without.probe != "conversion"
        assert msgspec.structs.replace(case, probe=without.probe) == without
        converting += case.probe == "conversion"
    assert 25 <= converting <= 70

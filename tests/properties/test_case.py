"""A case is valid, frozen, and the same JSON and id wherever it comes from."""

import hashlib
import json
import random
import string

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from properties.case import MAX_JSON_BYTES, Case, Special, Step, decode, encode, events
from properties.case_checks import CaseError
from properties.domain import Domain
from properties.generation.strategies import cases

BAD = [
    {"batches": ()},
    {"batches": (1,) * 65},
    {"batches": (1, -1)},
    {"spatial": ((1,), (1,), (1,))},
    {"spatial": ((1,), (1, 1))},
    {"spatial": ((1, 1, 1, 1),)},
    {"spatial": ((0,),)},
    {"channels": 0},
    {"channels": 5000},
    {"batches": (2**20,), "spatial": ((2**10,),)},
    {"groups": ((0,),)},
    {"groups": ((0, 1), (1,))},
    {"groups": ((1, 0),)},
    {"groups": ((0, 1), ())},
    {"groups": ((0, 2), (1,))},
    {"dtype": "float64"},
    {"dtype": "float16", "param_dtype": "bfloat16"},
    {"eps": -1e-5},
    {"eps": float("nan")},
    {"eps": float("inf")},
    {"momentum": 1.5},
    {"momentum": -0.1},
    {"momentum": float("nan")},
    {"input_grad": (True,)},
    {"frozen": ("weight", "weight")},
    {"steps": ()},
    {"steps": (Step(),) * 9},
    {"specials": (Special("nan"),) * 17},
    {"specials": (Special("nan", rank=-1),)},
    {"rank_offset": -1},
    {"seed": -1},
    {"seed": 2**64},
    {"cotangent_exponent": 65},
    {"variance_exponent": -65},
    {"input_offset": -1},
    {"cotangent_offset": 4097},
    {"steps": (Step(batches=(1, 2)),)},
    {"steps": (Step(), Step(batches=(1,)))},
    {"steps": (Step(), Step(batches=(1, -2)))},
    {"steps": (Step(), Step(spatial=((2,),)))},
    {"steps": (Step(), Step(spatial=((),) * 3))},
    {"spatial": ((4,),), "steps": (Step(), Step(spatial=((0,),)))},
    {"steps": (Step(), Step(batches=(2**20, 2**30)))},
    {"steps": (Step(grad_mode="no_grad"),)},
    {"steps": (Step(grad_mode="inference", backward="none", recompute=True),)},
    {"steps": (Step(backward="twice", recompute=True),)},
    {"steps": (Step(), Step(frozen=True, accumulate=True))},
    {"steps": (Step(backward="deferred"), Step(frozen=True))},
    {"steps": (Step(backward="deferred"), Step(rewritten=True))},
    {"input_layout": "channels_last", "spatial": ((3,),)},
    {"cotangent_layout": "channels_last"},
]


@pytest.mark.parametrize("fields", BAD, ids=[",".join(fields) + str(i) for i, fields in enumerate(BAD)])
def test_an_impossible_case_raises_one_line_that_names_the_value(fields):
    with pytest.raises(CaseError) as caught:
        Case(**fields)
    message = str(caught.value)
    assert message.startswith("Expected ")
    assert "but got " in message
    assert "\n" not in message


@pytest.mark.parametrize("field", ["batches", "eps", "steps"])
def test_a_case_is_frozen(field):
    with pytest.raises(AttributeError):
        setattr(Case(), field, None)


@given(cases(Domain(world_sizes=(1, 2, 3, 4, 5, 8), ragged_grad=True)))
def test_a_case_survives_json_with_its_id(case):
    text = encode(case)
    again = decode(text)
    assert again == case
    assert (encode(again), again.id) == (text, case.id)
    assert decode(text.decode()) == case
    assert len(case.id) == 12
    assert set(case.id) <= set(string.hexdigits.lower())


def test_fields_at_their_default_are_not_written_even_where_they_were_given():
    assert encode(Case()) == b"{}"
    written = '{"eps": 1e-5, "momentum": 0.1, "steps": [{"mode": "train"}], "spatial": [[]], "seed": 0}'
    assert encode(decode(written)) == b"{}"
    assert encode(Case(specials=(Special("nan", rank=0, channel=2),))) == (
        b'{"specials":[{"channel":2,"kind":"nan"}]}'
    )


def test_equal_cases_have_equal_ids_however_their_numbers_are_written():
    for one, other in (
        (Case(eps=1, momentum=1), Case(eps=1.0, momentum=1.0)),
        (Case(eps=0.0), Case(eps=-0.0)),
    ):
        assert one == other
        assert one.id == other.id == decode(encode(one)).id


def test_ids_are_stable():
    text = b'{"batches":[1,0,4],"dtype":"bfloat16","seed":42,"steps":[{},{"mode":"eval"}]}'
    case = Case(batches=(1, 0, 4), dtype="bfloat16", seed=42, steps=(Step(), Step(mode="eval")))
    assert encode(case) == text
    assert case.id == hashlib.sha256(text).hexdigest()[:12]


def test_different_cases_have_different_ids():
    source = random.Random(0)
    drawn = {encode(Case(seed=source.getrandbits(64), channels=c)) for c in range(1, 50)}
    assert len({decode(text).id for text in drawn}) == len(drawn)


GARBAGE = [
    "",
    "{",
    "null",
    "[]",
    "3",
    '{"batches": null}',
    '{"batches": [1, "x"]}',
    '{"batches": [1e300]}',
    '{"unknown": 1}',
    '{"steps": [{"unknown": 1}]}',
    '{"eps": "nan"}',
    '{"eps": NaN}',
    '{"eps": 1e999}',
    '{"dtype": "int8"}',
    '{"seed": 1.5}',
    '{"batches": [1], "batches": [true]}',
    b"\xff\xfe{}",
    b'{"values": "\xff"}',
    "[" * 20000,
    '{"batches":' * 5000,
    "{" + '"seed": 1,' * (MAX_JSON_BYTES // 10) + "}",
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_no_case_raises_a_case_error_of_one_short_line(data):
    with pytest.raises(CaseError) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@given(st.binary(max_size=200) | st.text(max_size=200))
@example(b"\x00")
@example('{"seed": 18446744073709551616}')
def test_arbitrary_input_gives_a_case_or_a_case_error(data):
    try:
        case = decode(data)
    except CaseError:
        return
    assert decode(encode(case)) == case


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(Case.__struct_fields__), JSON, max_size=4))
def test_arbitrary_values_of_the_right_fields_give_a_case_or_a_case_error(fields):
    try:
        case = decode(json.dumps(fields))
    except CaseError:
        return
    assert decode(encode(case)) == case


def test_derived_facts_of_a_case():
    case = Case(
        batches=(2, 0, 3),
        spatial=((4, 2), (1, 1), (3, 3)),
        channels=5,
        groups=((0, 2), (1,)),
        affine="weight",
        input_grad=(True, True, False),
    )
    assert (case.world_size, case.shape_of(2), case.count_of(0), case.count_of(1)) == (3, (3, 5, 3, 3), 16, 0)
    assert (case.group_of(2), case.total_of((0, 2)), case.ragged_grad) == ((0, 2), 43, True)
    assert (case.has_weight, case.has_bias) == (True, False)
    assert Case().process_groups == ((0, 1),)
    assert msgspec.structs.replace(case, input_grad=(True, False, True)).ragged_grad is False


F, B = "forward", "backward"


@pytest.mark.parametrize(
    ("backwards", "order"),
    [
        (["now"], [(F, 0), (B, 0)]),
        (["none"], [(F, 0)]),
        (["deferred"], [(F, 0), (B, 0)]),
        (["deferred", "now"], [(F, 0), (F, 1), (B, 0), (B, 1)]),
        (["deferred", "deferred", "now"], [(F, 0), (F, 1), (B, 0), (F, 2), (B, 1), (B, 2)]),
        (["deferred", "none"], [(F, 0), (F, 1), (B, 0)]),
        (["now", "deferred"], [(F, 0), (B, 0), (F, 1), (B, 1)]),
    ],
)
def test_a_deferred_backward_runs_after_the_next_forward_and_before_its_backward(backwards, order):
    steps = tuple(Step(backward=one) for one in backwards)
    assert list(events(Case(steps=steps))) == order


def test_a_step_may_have_sizes_of_its_own():
    case = Case(
        batches=(2, 3),
        spatial=((2, 2),),
        channels=4,
        steps=(Step(), Step(batches=(0, 5)), Step(spatial=((1, 2),))),
    )
    assert [one.batches for one in case.by_step] == [(2, 3), (0, 5), (2, 3)]
    assert case.at(2).shape_of(1) == (3, 4, 1, 2)
    assert case.at(0) is case
    assert case.at(7) is case
    assert case.at(1).at(1) == case.at(1)
    assert case.elements == 4 * (5 * 4 + 5 * 4 + 5 * 2)


def test_a_frozen_step_trains_no_parameter():
    case = Case(frozen=("bias",), steps=(Step(), Step(frozen=True, recompute=True)))
    assert [case.trains("weight", k) for k in (0, 1)] == [True, False]
    assert [case.trains("bias", k) for k in (0, 1)] == [False, False]
    assert case.recomputes(1, 0)
    assert not msgspec.structs.replace(case, input_grad=(False, False)).recomputes(1, 0)


def test_a_step_is_recomputed_only_where_every_right_subject_saves_a_tensor():
    step = (Step(recompute=True),)
    assert Case(batches=(2, 0), steps=step).recomputes(0, 1)
    assert not Case(batches=(2, 2)).recomputes(0, 0)
    assert not Case(batches=(0, 0), steps=step).recomputes(0, 0)
    frozen = Case(steps=step, frozen=("weight",), input_grad=(False, False))
    assert not frozen.recomputes(0, 0)
    assert Case(steps=step, frozen=("weight",)).recomputes(0, 0)
    assert not Case(batches=(0, 3), groups=((0,), (1,)), steps=step).recomputes(0, 0)

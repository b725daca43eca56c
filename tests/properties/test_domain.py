"""Domain, contract and grade: closed lists, and errors that list them."""

import math

import pytest

from properties.domain import (
    Contract,
    Domain,
    DomainError,
    Promise,
    for_slow,
    keys_text,
    layouts_of,
    override,
    promise_from,
)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"domian": {}}, ["domain, contract, grade, known", "Did you mean 'domain'?"]),
        ({"domain": {"dtype": ["float32"]}}, ["dtypes", "Did you mean 'dtypes'?"]),
        ({"domain": {"dtypes": ["int8"]}}, ["float64", "bfloat16", "int8"]),
        ({"domain": {"empty": "maybe"}}, ["never|some|all", "maybe"]),
        ({"domain": {"world_sizes": [0]}}, ["from 1 to 64"]),
        ({"domain": {"dims": [6]}}, ["from 2 to 5"]),
        ({"domain": {"dtypes": []}}, ["at least one value"]),
        ({"domain": {"layouts": ["expanded"]}}, ["layout for input and cotangent"]),
        ({"domain": {"layouts": ["sliced"]}}, ["layout for input and cotangent"]),
        ({"domain": {"layouts": ["channels_last"], "dims": [2, 3]}}, ["dims of 4 or 5"]),
        ({"domain": {"groups": ["disjoint"], "world_sizes": [1]}}, ["2 or more ranks"]),
        ({"domain": 3}, ["dictionary"]),
        ({"contract": {"running_var": "none"}}, ["unbiased|biased"]),
        ({"contract": {"affine_grads": "sum"}}, ["affine_grad"]),
        ({"grade": "D"}, ["A, B, C"]),
    ],
)
def test_an_unknown_key_or_value_raises_one_line_with_the_valid_ones(data, words):
    with pytest.raises(DomainError) as caught:
        promise_from(data)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_promise_is_read_from_plain_data():
    promise = promise_from(
        {
            "domain": {"dtypes": ["float32"], "empty": "never", "tracking": [True]},
            "contract": {"affine_grad": "sum"},
            "grade": "B",
            "known": "known.toml",
        }
    )
    assert promise == Promise(
        domain=Domain(dtypes=("float32",), empty="never", tracking=(True,)),
        contract=Contract(affine_grad="sum"),
        grade="B",
        known="known.toml",
    )
    assert promise_from({}) == Promise()


def test_a_single_value_stands_for_a_list_of_one():
    assert promise_from({"domain": {"dtypes": "float32"}}).domain.dtypes == ("float32",)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("dtypes", "float32, bfloat16", ("float32", "bfloat16")),
        ("world_sizes", "2,3", (2, 3)),
        ("world_sizes", "2", (2,)),
        ("ragged_grad", "yes", True),
        ("eval", "no", False),
        ("tracking", "yes", (True,)),
        ("empty", "some", "some"),
        ("eps", "positive,zero", ("positive", "zero")),
        ("eps", "zero", ("zero",)),
    ],
)
def test_settings_of_a_command_line_override_the_promise(key, text, value):
    promise = override(Promise(grade="B"), domain={key: text}, contract={}, grade=None)
    assert getattr(promise.domain, key) == value
    assert promise.grade == "B"


def test_no_is_a_word_where_a_key_has_it_among_words():
    promise = override(Promise(), domain={}, contract={"scaling": "no", "deterministic": "no"}, grade=None)
    assert promise.contract == Contract(scaling="no", deterministic=False)
    with pytest.raises(DomainError, match=r"scaling=exact\|no"):
        override(Promise(), domain={}, contract={"scaling": "yes"}, grade=None)


def test_the_command_line_overrides_contract_and_grade():
    promise = override(Promise(), domain={}, contract={"momentum": "decay", "inplace": "yes"}, grade="C")
    assert (promise.contract, promise.grade) == (Contract(momentum="decay", inplace=True), "C")


@pytest.mark.parametrize(
    ("domain", "contract", "grade"),
    [
        ({"dtypes": "int8"}, {}, None),
        ({"empty": "some,all"}, {}, None),
        ({"eval": "3"}, {}, None),
        ({"world_sizes": "two"}, {}, None),
        ({}, {"nothing": "x"}, None),
        ({}, {}, "Z"),
    ],
)
def test_bad_settings_of_a_command_line_raise(domain, contract, grade):
    with pytest.raises(DomainError):
        override(Promise(), domain=domain, contract=contract, grade=grade)


@pytest.mark.parametrize("kind", [Domain, Contract])
def test_the_help_text_has_every_key_with_its_default(kind):
    lines = keys_text(kind).splitlines()
    assert [line.partition("=")[0] for line in lines] == list(kind.__struct_fields__)
    assert all("(default " in line for line in lines)


def test_sliced_is_for_inputs_and_expanded_for_cotangents():
    inputs, cotangents = layouts_of(Domain())
    assert set(inputs) == {"contiguous", "channels_last", "permuted", "sliced", "cropped", "split"}
    assert set(cotangents) == {"contiguous", "channels_last", "permuted", "expanded", "cropped", "split"}


def test_seconds_of_a_case_are_promised_and_kept_by_an_override():
    promise = promise_from({"case_seconds": 45})
    assert promise.case_seconds == 45
    assert override(promise, domain={"eval": "no"}, contract={}, grade=None).case_seconds == 45
    assert Promise().case_seconds is None


def test_a_subject_that_declares_its_time_is_given_no_sizes_of_networks_unless_it_asks():
    assert promise_from({"case_seconds": 45}).domain.sizes == ("small",)
    both = {"case_seconds": 45, "domain": {"sizes": ["small", "network"]}}
    assert promise_from(both).domain.sizes == ("small", "network")
    asked = override(promise_from({"case_seconds": 45}), domain={"sizes": "network"}, contract={}, grade=None)
    assert asked.domain.sizes == ("network",)
    assert for_slow(Promise(), 9.0, keep_sizes=False).domain.sizes == ("small",)
    assert for_slow(Promise(), 9.0, keep_sizes=True).domain.sizes == Domain().sizes
    alone = Promise(domain=Domain(sizes=("network",)))
    assert for_slow(alone, 9.0, keep_sizes=False).domain.sizes == ("network",)


@pytest.mark.parametrize("seconds", [0, -1, "60", True, math.inf, 1e7])
def test_seconds_of_a_case_are_a_number_above_0(seconds):
    with pytest.raises(DomainError, match="Expected seconds above 0, but got case_seconds="):
        promise_from({"case_seconds": seconds})

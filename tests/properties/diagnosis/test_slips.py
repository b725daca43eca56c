"""Slips: a plain batch norm is right without any, and one that has a slip is told so."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from msgspec import structs

from properties.case import Case, Special, Step
from properties.diagnosis.causes import ALL
from properties.diagnosis.diagnose import classes_of, diagnose, words_of
from properties.diagnosis.plain_batchnorm import Modes, truncated
from properties.diagnosis.plain_schedule import expressible, follow
from properties.diagnosis.slip_search import Scoped, SlipSearch
from properties.diagnosis.slip_search import named as names_of
from properties.diagnosis.slips import ALL_SLIPS, SCOPES, SUFFIXES, WORDS
from properties.diagnosis.symptoms import SYMPTOMS
from properties.domain import Contract, Domain
from properties.expectation.expect import expect, refusals
from properties.generation.strategies import cases
from properties.values.elements import round_to
from properties.values.period import is_large
from tests.properties.diagnosis.simulated import Seen, seen, slipped

STEPS = (Step(), Step(mode="eval"))
COMMON = {"random_parameters": True, "rank_offset": 2, "eps": 0.1, "channels": 3}
CASES = (
    *(Case(batches=(3, 4), spatial=((5, 3),), steps=STEPS, seed=k, **COMMON) for k in range(3)),
    *(Case(batches=(5, 2, 4), spatial=((6,),), seed=k, **COMMON) for k in range(3)),
    *(Case(batches=(70, 131, 3), steps=STEPS, seed=k, **COMMON) for k in range(2)),
    Case(batches=(1111, 2100, 5), seed=3, **COMMON),
    Case(batches=(9, 8, 5, 11), spatial=((7,),), momentum=0.3, steps=STEPS, seed=4, **COMMON),
    *(
        Case(batches=(40, 31), dtype=dtype, param_dtype="float32", steps=STEPS, seed=k, **COMMON)
        for k, dtype in enumerate(("float16", "bfloat16", "bfloat16"))
    ),
    Case(batches=(3003, 2900), dtype="bfloat16", seed=5, **COMMON),
    *(Case(batches=(3, 2, 4), spatial=((5,), (2,), (3,)), seed=k, **COMMON) for k in range(3)),
    *(Case(batches=(4, 3), spatial=((5, 7), (19, 1)), seed=k, **COMMON) for k in range(2)),
    *(Case(batches=(5, 3), seed=k, **{**COMMON, "channels": 130}) for k in range(2)),
    Case(batches=(40,), momentum=None, steps=(*STEPS, Step()), seed=6, **COMMON),
    Case(batches=(3, 2), spatial=((4,),), tracking=False, steps=STEPS, seed=7, **COMMON),
)
KINDS = {one.kind: one for one in ALL_SLIPS}


def evidence(one: Scoped) -> list[Seen]:
    found = [slipped(case, one.applied(Modes())) for case in CASES]
    return [trial for trial in found if trial.violated]


def named(trials: list[Seen]) -> dict[str, tuple[str, ...]]:
    right = {trial.case: expect(trial.case, Contract(), "A") for trial in trials}
    search = SlipSearch(trials, right, Contract(), until=np.inf, clock=time.monotonic)
    return {part: names_of(found) for part, found in search.parts()}


@settings(max_examples=150)
@given(cases(Domain()))
def test_a_plain_batch_norm_is_right(case):
    assume(expressible(case) and not is_large(case) and not refusals(case))
    right, found = expect(case, Contract(), "A"), follow(case, Contract(), Modes())
    assert {(name, rank) for name, by_rank in right.tensors.items() for rank in by_rank} == found.keys()
    for (name, rank), value in found.items():
        interval = right.tensors[name][rank]
        decided = np.isfinite(interval.bound) & np.isfinite(interval.value)
        assert (np.abs(value - interval.value) <= interval.bound)[decided].all(), name


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=kind, marks=pytest.mark.costly if number % 8 else ())
        for number, kind in enumerate(KINDS)
    ],
)
def test_a_subject_that_has_a_slip_is_told_so(kind):
    """By its own name or, where the trials do not tell a number, by that of its kind."""
    one = KINDS[kind]
    trials = evidence(Scoped(one))
    found = named(trials)[one.part]
    assert one.id in found or kind in found


@pytest.mark.parametrize("scope", [scope for scope in SCOPES if scope])
def test_the_modes_in_which_a_slip_acts_are_told(scope):
    one = Scoped(next(one for one in ALL_SLIPS if one.id == "mean-not-subtracted"), scope)
    assert named(evidence(one))["forward"][0] == f"mean-not-subtracted{SUFFIXES[scope]}"


def test_several_of_a_kind_are_told_as_the_kind():
    one = next(one for one in ALL_SLIPS if one.id == "sums-without-tail-alone-64")
    small = [slipped(case, Scoped(one).applied(Modes())) for case in CASES[:6]]
    assert named(small)["backward"][0] == "sums-without-tail-alone"
    assert named(evidence(Scoped(one)))["backward"][0] == "sums-without-tail-alone-64"


def test_an_error_that_no_slip_gives_is_told_none():
    trials = []
    for case in CASES[:6]:
        tensors = follow(case, Contract(), Modes())
        changed = {
            key: value * (1 + 3e-4) if key[0].startswith("output") else value
            for key, value in tensors.items()
        }
        trials.append(seen(case, changed))
    assert all("forward" in trial.violated for trial in trials)
    assert named(trials) == {}


def test_one_trial_that_contradicts_a_slip_is_enough():
    one = Scoped(next(one for one in ALL_SLIPS if one.id == "own-mean-subtracted"))
    other = Scoped(next(one for one in ALL_SLIPS if one.id == "mean-not-subtracted"))
    trials = [*evidence(one)[1:], slipped(CASES[0], other.applied(Modes()))]
    assert "forward" not in named(trials)


def test_a_slip_is_told_where_no_cause_explains_it():
    one = Scoped(next(one for one in ALL_SLIPS if one.id == "deviation-tracked"))
    found = diagnose(evidence(one)[:4], Contract(), "A", seconds=60.0)
    assert found.of("running_var") == ("deviation-tracked",)
    assert words_of("deviation-tracked") == "tracks the deviation in place of the variance"


@pytest.mark.parametrize(("sample", "explained"), [(69, True), (3, False)])
def test_a_slip_explains_that_a_non_finite_input_is_not_seen_where_it_leaves_it_out(sample, explained):
    one = Scoped(next(one for one in ALL_SLIPS if one.id == "tail-left-out-64"))
    case = Case(batches=(70,), specials=(Special(kind="nan", sample=sample),), **COMMON)
    drawn = case if explained else structs.replace(case, specials=())
    unseen = seen(case, follow(drawn, Contract(), one.applied(Modes())))
    assert "nonfinite" in unseen.violated
    found = diagnose([*evidence(one)[-6:], unseen], Contract(), "A", seconds=60.0)
    assert found.of("forward") == ("tail-left-out-64",)
    assert found.of("nonfinite") == (("tail-left-out-64",) if explained else ())


def test_what_is_common_to_many_slips_is_told_where_no_trial_tells_them_apart():
    """Rows of fewer positions than a vector: nothing is left, whatever else is done."""
    one = KINDS["ends-of-rows-left-out-of-raw-sums"]
    trials = [slipped(case, Scoped(one).applied(Modes())) for case in CASES[:3]]
    assert named(trials)["forward"] == ("values-left-out",)
    assert words_of("values-left-out") == "leaves some values of a rank out of its statistics"


def test_names_are_those_of_no_cause_and_described():
    names = {one.id for one in ALL_SLIPS}
    assert len(names) == len(ALL_SLIPS)
    assert not set(WORDS) & {one.id for one in (*ALL, *SYMPTOMS)}
    assert all(words_of(name) and classes_of(name) for name in WORDS)
    assert not any("{}" in words for words in WORDS.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cut_values_are_the_nearest_ones_towards_zero(dtype):
    values = np.random.default_rng(1).standard_normal(4000) * 2.0 ** np.arange(-27, 13).repeat(100)
    cut = truncated(values, dtype)
    np.testing.assert_array_equal(round_to(cut, dtype), cut)
    assert (np.abs(cut) <= np.abs(values)).all()
    up = round_to(values, dtype)
    np.testing.assert_array_equal(np.where(np.abs(up) <= np.abs(values), up, cut), cut)

"""The score: medians over seeds, shares of diagnosis, targets and exit codes."""

from __future__ import annotations

import pytest

from tests.verify.measure.power.samples import RIGHT, acquitted, card, caught, missed, smallest, units
from verify import errors
from verify.measure.power.outcome import Broken, Cell, Done
from verify.measure.power.score import Score
from verify.measure.power.work_units import right_units


def score(made, done, **more):
    found = Score(tuple(made), **more)
    for one in done:
        found.add(one)
    return found


def test_cases_and_seconds_are_medians_over_the_seeds_that_caught_the_fault():
    made = units(card(), seeds=4)
    outcomes = [
        caught(made[2], cases=9, seconds=3.0),
        caught(made[0], cases=1, seconds=1.0),
        missed(made[1]),
        caught(made[3], cases=2, seconds=0.5),
    ]
    (row,) = score(made, outcomes).rows
    assert (row.caught, row.wanted, row.cases, row.seconds, row.latest) == (3, 4, 2, 1.0, 9)
    assert [outcome.seed for outcome in row.outcomes] == [1, 2, 3, 4]
    assert row.finished
    assert not row.complete
    assert row.lacking == ("forward",)


def test_the_minimal_case_is_the_largest_over_the_seeds():
    made = units(card(), seeds=3)
    sizes = [smallest(2, 1), smallest(3, 1), smallest(2, 7)]
    found = score(made, [caught(unit, smallest=size) for unit, size in zip(made, sizes, strict=True)])
    assert found.rows[0].minimal == sizes[1]
    assert found.not_small == ("fault",)


@pytest.mark.parametrize(
    ("size", "promised", "listed"), [((2, 1), True, False), ((2, 2), True, True), ((3, 1), False, False)]
)
def test_a_fault_that_is_small_must_have_a_small_minimal_case(size, promised, listed):
    made = units(card(small=promised))
    found = score(made, [caught(made[0], smallest=smallest(*size))])
    assert bool(found.not_small) is listed


def test_the_diagnosis_is_measured_apart_for_nameable_and_other_faults():
    faults = [card("a", number=3), card("b", number=4), card("c", number=0, nameable=False)]
    made = units(*faults)
    done = [
        caught(made[0], causes=("x",), classes=(2, 3), diagnosed=True),
        caught(made[1], causes=("x",), classes=(2, 3), diagnosed=True),
        caught(made[2], causes=("x",), classes=(2, 3), diagnosed=True),
    ]
    found = score(made, done)
    assert (found.named.rightly, found.named.nameable) == (1, 2)
    assert (found.named.falsely, found.named.others) == (1, 1)
    assert found.rows[0].cause == "x"
    assert found.exit_code == errors.NOT_MET
    assert score(made, done, whole=False).exit_code == errors.OK


def test_a_missed_nameable_fault_is_not_named():
    made = units(card())
    assert score(made, [missed(made[0], diagnosed=True)]).named.rightly_share == 0.0


def test_without_diagnosis_its_targets_do_not_count():
    made = units(card())
    found = score(made, [caught(made[0])])
    assert not found.named.measured
    assert found.exit_code == errors.OK


def test_nine_of_ten_named_and_one_of_ten_falsely_named_meet_the_targets():
    faults = [card(f"n{i}") for i in range(10)] + [card(f"o{i}", nameable=False) for i in range(10)]
    made = units(*faults)
    named = {"causes": ("x",), "classes": (1,), "diagnosed": True}
    done = [caught(unit, **(named if 0 < i <= 10 else {"diagnosed": True})) for i, unit in enumerate(made)]
    found = score(made, done)
    assert (found.named.rightly, found.named.falsely) == (9, 1)
    assert found.exit_code == errors.OK


def exit_code(*outcomes, faults=1, right=False):
    made = (*units(*(card(str(i)) for i in range(faults))), *(right_units(RIGHT, cases=2) if right else ()))
    return score(made, [outcome(unit) for outcome, unit in zip(outcomes, made, strict=True)]).exit_code


def lost(unit):
    return Done(unit=unit, outcome=Broken(reason="the worker ended with exit code -9"))


@pytest.mark.parametrize(
    ("outcomes", "right", "code"),
    [
        ((caught,), False, errors.OK),
        ((missed,), False, errors.NOT_MET),
        ((lambda unit: caught(unit, lacking=("purity",)),), False, errors.NOT_MET),
        ((lambda unit: caught(unit, internal=1),), False, errors.INTERNAL),
        ((lost,), False, errors.INTERNAL),
        ((caught, acquitted, acquitted), True, errors.OK),
        ((caught, acquitted, lambda unit: acquitted(unit, accused=1)), True, errors.NOT_MET),
        ((caught, acquitted, lost), True, errors.INTERNAL),
        ((missed, acquitted, lost), True, errors.NOT_MET),
    ],
)
def test_the_exit_code_says_whether_the_targets_are_met(outcomes, right, code):
    assert exit_code(*outcomes, right=right) == code


def test_right_subjects_are_summed_over_their_units():
    made = tuple(right_units(RIGHT[:1], cases=10, chunk=5))
    cells = [
        Cell(dtype="float32", property="forward", pairs=5, elements=10, undecided=1, max_ratio=0.5),
        Cell(
            dtype="float32", property="forward", pairs=5, elements=30, undecided=3, blind=2, max_ratio="inf"
        ),
    ]
    done = [acquitted(unit, cells=(cell,)) for unit, cell in zip(made, cells, strict=True)]
    (row,) = score(made, done).right
    assert row.cases == 10
    assert row.cells == (
        Cell(
            dtype="float32",
            property="forward",
            pairs=10,
            elements=40,
            undecided=4,
            blind=2,
            max_ratio="inf",
        ),
    )
    assert row.undecided_share == 0.1
    assert row.max_ratio == float("inf")

"""repeatable and scaling, and the second case they rest on."""

import msgspec
import numpy as np
import pytest

from properties.case import Case, Special, Step
from properties.domain import Contract
from properties.probe import AFFINE_SHIFT, COTANGENT_SHIFT, second

SHIFTS = {
    "output": AFFINE_SHIFT,
    "grad_input": COTANGENT_SHIFT + AFFINE_SHIFT,
    "grad_weight": COTANGENT_SHIFT,
    "grad_bias": COTANGENT_SHIFT,
}


def times(held, factor):
    if held.dtype == "bfloat16":
        bits = (held.values * factor).astype(np.float32).view(np.uint32) >> np.uint32(16)
        return msgspec.structs.replace(held, array=bits.astype(np.uint16))
    return msgspec.structs.replace(held, array=held.array * np.asarray(factor, held.array.dtype))


def probed(scene, probe, **fields):
    """A scene whose second run is what a right subject gives."""
    one = scene(batches=(2, 2), channels=3, probe=probe, **fields)
    one.again = list(one.ranks)
    if probe == "scaling":
        for rank in range(one.case.world_size):
            for name, held in one.ranks[rank].tensors.items():
                shift = SHIFTS.get(name.partition(".")[0], 0)
                if not one.case.has_weight:
                    shift -= AFFINE_SHIFT if name.startswith(("output", "grad_input")) else 0
                one.put(rank, name, times(held, 2**shift), again=True)
    return one


def nudge(one, rank, name, bits=1):
    held = one.again[rank].tensors[name]
    array = held.array.copy()
    array.view(f"u{array.itemsize}").reshape(-1)[0] += np.asarray(bits, f"u{array.itemsize}")
    one.put(rank, name, msgspec.structs.replace(held, array=array), again=True)


@pytest.mark.parametrize("probe", ["repeatable", "scaling"])
@pytest.mark.parametrize("fields", [{}, {"affine": "none"}, {"dtype": "float16"}, {"dtype": "bfloat16"}])
def test_a_right_second_run_holds(scene, probe, fields):
    one = probed(scene, probe, **fields)
    assert one.outcomes()[probe] == "HOLDS"
    assert one.violated() == set()
    assert one.verdicts()[probe].undecided == 0


@pytest.mark.parametrize("probe", ["repeatable", "scaling"])
@pytest.mark.parametrize(
    "name", ["output.0", "grad_input.0", "grad_weight.0", "grad_bias.0", "running_var.0"]
)
def test_a_single_bit_in_the_second_run_is_a_violation(scene, probe, name):
    one = probed(scene, probe)
    nudge(one, 1, name)
    assert one.violated() == {probe}
    found = one.verdicts()[probe].discrepancies[0]
    assert (found.quantity, found.rank, found.mismatched) == (name, 1, 1)


@pytest.mark.parametrize("probe", ["repeatable", "scaling"])
def test_a_missing_or_reshaped_tensor_in_the_second_run_is_a_violation(scene, tensor, probe):
    one = probed(scene, probe)
    one.put(0, "grad_bias.0", None, again=True)
    assert one.violated() == {probe}
    one.put(0, "grad_bias.0", tensor([1.0]), again=True)
    assert one.violated() == {probe}


def folded(held, *, rows=2, bits=""):
    """A tensor (N, C) folded to one place; a third row, as where not all is finite, shows the first again."""
    low, high = held.values.argmin(axis=0), held.values.argmax(axis=0)
    positions = np.stack([low, high, low])[:rows]
    array = np.take_along_axis(held.array, positions, axis=0)
    fields = {"positions": positions, "logical_shape": held.shape, "held": 1, "bits": bits}
    return msgspec.structs.replace(held, array=array, **fields)


@pytest.mark.parametrize("probe", ["repeatable", "scaling"])
def test_a_fold_that_one_run_has_another_row_of_is_the_same(scene, probe):
    one = probed(scene, probe)
    for again, rows in ((False, 2), (True, 3)):
        held = (one.again if again else one.ranks)[0].tensors["output.0"]
        one.put(0, "output.0", folded(held, rows=rows), again=again)
    assert one.violated() == set()
    nudge(one, 0, "output.0")
    assert one.violated() == {probe}


def test_other_bits_beside_the_ends_of_a_fold_are_not_repeatable(scene):
    one = probed(scene, "repeatable")
    for again, bits in ((False, "ab"), (True, "cd")):
        held = (one.again if again else one.ranks)[1].tensors["output.0"]
        one.put(1, "output.0", folded(held, bits=bits), again=again)
    (found,) = one.verdicts()["repeatable"].discrepancies
    assert (found.quantity, found.rank, found.at_least) == ("output.0", 1, True)
    assert "other bits" in found.message


@pytest.mark.parametrize("probe", ["repeatable", "scaling"])
def test_a_second_run_that_does_not_return_is_a_violation(scene, probe):
    one = probed(scene, probe)
    one.again[1] = msgspec.structs.replace(one.again[1], ending="died", exit="signal SIGABRT")
    one.again[0] = msgspec.structs.replace(one.again[0], ending="stopped")
    assert one.violated() == {probe}
    (found,) = one.verdicts()[probe].discrepancies
    assert (found.rank, found.ending) == (1, "died")


@pytest.mark.parametrize("probe", ["repeatable", "scaling"])
def test_nothing_is_asked_of_a_subject_that_is_not_deterministic_or_of_a_case_without_second_run(
    scene, probe
):
    one = probed(scene, probe)
    nudge(one, 0, "output.0")
    one.contract = Contract(deterministic=False)
    assert probe not in one.verdicts()
    one.contract = Contract()
    one.again = None
    assert probe not in one.verdicts()


def test_a_subject_whose_sums_depend_on_the_data_need_not_scale_but_must_repeat(scene):
    one = probed(scene, "scaling")
    one.contract = Contract(scaling="no")
    nudge(one, 0, "output.0")
    assert "scaling" not in one.verdicts()
    one = probed(scene, "repeatable")
    one.contract = Contract(scaling="no")
    nudge(one, 0, "output.0")
    assert one.violated() == {"repeatable"}


def test_nans_repeat_by_class(scene, tensor):
    one = probed(scene, "repeatable")
    payloads = [np.array([bits] * 3, np.uint32).view(np.float32) for bits in (0x7FC00000, 0xFFC00001)]
    one.put(0, "running_mean.0", tensor(payloads[0]))
    one.put(0, "running_mean.0", tensor(payloads[1]), again=True)
    assert one.outcomes()["repeatable"] == "HOLDS"


@pytest.mark.parametrize(
    ("dtype", "value", "scaled", "outcome"),
    [
        ("float16", 2.0**-14, 1.0, "undecided"),
        ("float16", 2.0**-14, 2.0**-12, "holds"),
        ("float16", 0.0, 2.0**-24, "undecided"),
        ("float16", 0.0, 0.0, "holds"),
        ("float16", 2.0**-9, 1.0, "violated"),
        ("float16", 1.5, 6.0 + 2.0**-7, "undecided"),
        ("float16", 1.5, 6.0 + 2.0**-6, "violated"),
        ("float32", 1.5, 6.0 + 2.0**-20, "violated"),
        ("float16", 60000.0, np.inf, "undecided"),
        ("float16", 15000.0, np.inf, "undecided"),
        ("float16", 4096.0, np.inf, "violated"),
        ("float32", 2.0**-124, 1.0, "undecided"),
        ("float32", 2.0**-100, 1.0, "violated"),
        ("bfloat16", 2.0**-124, 1.0, "undecided"),
    ],
)
def test_scaling_is_not_decided_near_under_or_overflow(scene, tensor, dtype, value, scaled, outcome):
    one = probed(scene, "scaling", dtype=dtype)
    for number, again in ((value, False), (scaled, True)):
        values = np.full((2, 3), 6.0 if again else 1.5)
        values[0, 1] = number
        one.put(0, "output.0", tensor(values, dtype, requires_grad=True), again=again)
    verdict = one.verdicts()["scaling"]
    assert verdict.undecided == int(outcome == "undecided")
    assert verdict.outcome.value == ("VIOLATED" if outcome == "violated" else "HOLDS")


def test_what_an_undecided_gradient_was_accumulated_into_stays_undecided(scene, tensor):
    steps = (Step(), Step(accumulate=True))
    one = probed(scene, "scaling", steps=steps)
    nudge(one, 0, "grad_weight.1", bits=100)
    assert one.violated() == {"scaling"}
    one.put(0, "grad_weight.0", tensor([2.0**-125, 1.5, 1.5]))
    one.put(0, "grad_weight.0", tensor([2.0**-122, 12.0, 12.0]), again=True)
    verdict = one.verdicts()["scaling"]
    assert (verdict.outcome.value, verdict.undecided) == ("HOLDS", 1)


def test_the_second_case_of_repeatable_is_the_case_itself():
    case = Case(probe="repeatable", values="subnormal")
    assert second(case) is case


def test_the_second_case_of_scaling_moves_the_exponents_and_nothing_else():
    case = Case(probe="scaling", seed=3)
    moved = second(case)
    assert moved is not None
    assert (moved.cotangent_exponent, moved.affine_exponent) == (COTANGENT_SHIFT, AFFINE_SHIFT)
    assert msgspec.structs.replace(moved, cotangent_exponent=0, affine_exponent=0) == case


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"probe": "scaling", "values": "subnormal"},
        {"probe": "scaling", "values": "near_overflow"},
        {"probe": "scaling", "specials": (Special("zero"),)},
        {"probe": "scaling", "affine_exponent": 60},
        {"probe": "repeatable", "wrong": "channels"},
        {"probe": "repeatable", "input_grad": (True, False)},
    ],
)
def test_some_cases_have_no_second_run(fields):
    assert second(Case(**fields)) is None

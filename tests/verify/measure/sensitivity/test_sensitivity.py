"""Sensitivity: the formula of assert_close, what the perturbed subject moves, and what is noticed."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from properties.case import Case
from verify.errors import UsageError
from verify.measure.sensitivity.closeness import TOLERANCES, excess
from verify.measure.sensitivity.sensitivity_page import TARGETS, Sensitivity, lines, page
from verify.measure.sensitivity.smallest_caught import (
    AIMS,
    QUANTITIES,
    STORED,
    Aim,
    Cell,
    Measured,
    Subject,
    cell,
    smallest,
)
from verify.measure.sensitivity.strata import STRATA, WORLD_SIZE, drawn
from verify.measure.sensitivity.sweep import measure, sensitivity_command
from verify.ranks.pool import RankPool

_CASE = Case(batches=(3, 2), spatial=((2,),), channels=2, random_parameters=True, seed=11)
_ASK_TORCH = """
import json, sys, torch
from torch.testing import assert_close
answers = []
for dtype, expected, distance in json.load(sys.stdin):
    kind = getattr(torch, dtype)
    try:
        assert_close(torch.tensor(expected + distance).to(kind), torch.tensor(expected).to(kind))
        answers.append(True)
    except AssertionError:
        answers.append(False)
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    with RankPool() as pool:
        yield Subject(pool, tmp_path_factory.mktemp("instructions"))


def test_closeness_is_that_of_torch():
    questions = [
        (dtype, expected, (atol + rtol * expected) * factor)
        for dtype, (rtol, atol) in TOLERANCES.items()
        for expected in (0.0, 1.0, 1024.0)
        for factor in (0.25, 4.0)
    ]
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_TORCH],
        input=json.dumps(questions),
        capture_output=True,
        check=True,
        text=True,
    )
    found = [
        bool(excess(np.array(value + distance), np.array(value), dtype=dtype) <= 1)
        for dtype, value, distance in questions
    ]
    assert found == json.loads(asked.stdout)
    assert found == [factor < 1 for _ in range(12) for factor in (0.25, 4.0)]


def test_drawn_cases_lie_in_their_stratum_and_train_on_two_ranks():
    for stratum in STRATA:
        for case in drawn(stratum, "bfloat16", seed=3, count=4):
            assert stratum.least <= case.total_of(tuple(range(WORLD_SIZE))) <= stratum.most
            assert (case.dtype, case.param_dtype, len(case.steps)) == ("bfloat16", "bfloat16", 1)
            assert case.steps[0].mode == "train"


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_perturbed_subject_moves_one_quantity_and_what_follows_from_it(subject, quantity):
    right = subject.run(_CASE, {}).ranks
    moved = subject.run(_CASE, {quantity: 2.0**-6}).ranks
    changed = {
        name.partition(".")[0]
        for before, after in zip(right, moved, strict=True)
        for name, tensor in before.tensors.items()
        if not np.array_equal(tensor.array, after.tensors[name].array)
    }
    if quantity in STORED:
        assert changed == {quantity}
    else:
        assert {"output", "grad_input", "grad_weight"} <= changed
        assert ("running_mean" in changed) == (quantity == "mean")
        assert ("running_var" in changed) == (quantity == "var")


def test_a_single_element_is_moved_on_its_rank_alone_by_the_amount(subject):
    right = subject.run(_CASE, {}).ranks
    moved = subject.run(_CASE, {"output": 2.0**-6}, rank=1, index=5).ranks
    assert np.array_equal(right[0].tensors["output.0"].array, moved[0].tensors["output.0"].array)
    before, after = (one[1].tensors["output.0"].values.ravel() for one in (right, moved))
    assert np.flatnonzero(before != after).tolist() == [5]
    assert after[5] == pytest.approx(before[5] * (1 + 2.0**-6), rel=2.0**-23)


def test_what_is_noticed_is_noticed_from_the_smallest_exponent_on(subject):
    measured = [Measured(_CASE, subject)]
    for aim in (Aim("output"), Aim("output", single=True), Aim("mean"), Aim("grad_weight", suite=False)):
        found = smallest(measured, aim)
        assert found is not None
        assert abs(found - measured[0].predicted(aim)) < 2
        assert [measured[0].noticed(aim, found + step) for step in (-1, 0, 1)] == [False, True, True]


def test_a_stratum_gives_one_cell_an_aim_and_a_case_without_the_quantity_tells_nothing(subject):
    bare = Measured(msgspec.structs.replace(_CASE, affine="none"), subject)
    assert not bare.tells(Aim("grad_weight"))
    found = cell([[bare]], Aim("grad_weight"), stratum="n", dtype="float32")
    assert (found.smallest, found.half, found.telling, found.cases) == (None, None, 0, 1)


def _cell(quantity, exponents, *, stratum="n <= 8", suite=True, half=3):
    return Cell(
        stratum=stratum,
        dtype="float32",
        quantity=quantity,
        single=False,
        suite=suite,
        exponents=exponents,
        half=half,
        telling=3,
        cases=4,
    )


def test_a_target_is_missed_if_one_seed_needs_more_and_the_page_says_so():
    assert TARGETS["float32", "n <= 8", "output"] == 5
    kept = Sensitivity(seeds=2, cases=2, cells=(_cell("output", (5, 4)), _cell("mean", (9, 9), suite=False)))
    assert kept.missed == ()
    assert "All met." in page(kept)
    lost = Sensitivity(seeds=2, cases=2, cells=(_cell("output", (5, 6)), _cell("running_var", (3, None))))
    assert [clause.partition(":")[0] for clause in lost.missed] == [
        "output float32, n <= 8, all elements",
        "running_var float32, n <= 8, all elements",
    ]
    assert any("| 6 (3) |" in line for line in lines(lost))


def test_the_command_measures_prints_and_writes(tmp_path, capsys, monkeypatch):
    asked = {}

    def fake(jobs, **options):
        asked.update(options, jobs=len(jobs))
        return Sensitivity(seeds=2, cases=3, cells=(_cell("output", (6,)),))

    monkeypatch.setattr("verify.measure.sensitivity.sweep.measure", fake)
    arguments = argparse.Namespace(
        seeds=2, cases=3, workers=1, json=str(tmp_path / "s.json"), table=str(tmp_path / "s.md")
    )
    assert sensitivity_command(arguments) == 1
    assert asked == {"seeds": 2, "cases": 3, "workers": 1, "jobs": 20}
    assert "missed: output float32" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["seeds"] == 2
    assert (tmp_path / "s.md").read_text().startswith("# Sensitivity")


def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path):
    arguments = argparse.Namespace(table=str(tmp_path / "no" / "s.md"), json=None)
    with pytest.raises(UsageError, match="Expected --table to be writable"):
        sensitivity_command(arguments)


def test_a_measurement_has_all_cells_and_catches_little_moves():
    found = measure(((STRATA[0], "float32"),), seeds=1, cases=3)
    assert [(one.quantity, one.single, one.suite) for one in found.cells] == list(AIMS)
    output = found.find("float32", "n <= 8", "output", single=False, suite=True)
    assert output is not None
    assert output.smallest is not None
    assert output.smallest <= 8

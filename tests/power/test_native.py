"""What torch's native batch norm does is not charged to who calls it without a word."""

from __future__ import annotations

from pathlib import Path

import msgspec

from properties.case import Case, Step
from verify.engine.engine import Run
from verify.report.explain import Occurrence, explain
from verify.subject import subject_from

FILE = Path(__file__).parent / "native_subjects.py"
STRIDED = Case(
    batches=(5, 4),
    spatial=((3,),),
    channels=2,
    dtype="bfloat16",
    input_layout="permuted",
    random_parameters=True,
    steps=(Step(mode="eval"),),
)
"""The backward of a strided half input rounds its sums to the half dtype: N5."""
N5 = "N5-low-precision-backward"


def test_a_failure_that_torchs_own_has_too_says_so(real_run: Run) -> None:
    examiner = real_run.examiner(real_run.subject(f"{FILE}:Inherits"))
    trial = examiner.examine(STRIDED)
    assert "grad_bias" in trial.violated
    native = examiner.native(trial, "grad_bias")
    assert [entry.id for entry in native] == [N5]
    occurrence = Occurrence(property_id="grad_bias", trial=trial, subject=examiner.subject, native=native)
    _, text = explain(occurrence)
    assert "torch's native batch norm does this too, N5" in text
    assert '"known": "torch-native"' in text


def test_a_fault_on_top_of_it_is_the_subjects_own(real_run: Run) -> None:
    examiner = real_run.examiner(real_run.subject(f"{FILE}:Doubles"))
    trial = examiner.examine(STRIDED)
    assert {"grad_bias", "grad_input"} <= set(trial.violated)
    assert examiner.native(trial, "grad_input") == ()


def test_a_subject_that_declares_it_is_excused(real_run: Run) -> None:
    spec = f"{FILE}:Inherits"
    described = real_run.pool.describe(spec)
    promise = {**described.promise, "known": "torch-native"}
    promised = msgspec.structs.replace(described, promise=promise)
    subject = subject_from(spec, promised)
    trial = real_run.examiner(subject).examine(STRIDED)
    assert trial.violated == ()
    assert {item.entry for item in trial.excused} == {N5}

"""Large cases on real ranks: drawn and expected by one period, given back folded, judged whole."""

from __future__ import annotations

import math

import msgspec
import pytest

from properties.case import Case, Special
from verify.measure.bench.timed_campaign import bench_run

IMAGES = Case(batches=(3, 0, 2), channels=65, spatial=((81, 61),), random_parameters=True, seed=3)
CASES = {
    "images": IMAGES,
    "channels_last": msgspec.structs.replace(
        IMAGES, input_layout="channels_last", cotangent_layout="expanded"
    ),
    "sliced": msgspec.structs.replace(IMAGES, input_layout="sliced", cotangent_layout="permuted"),
    "rows": Case(batches=(40_000, 10_000), channels=65, dtype="bfloat16", param_dtype="bfloat16"),
    "not finite": msgspec.structs.replace(
        IMAGES, specials=(Special(kind="nan", rank=2, sample=1, channel=64, position=4940),)
    ),
}


@pytest.fixture(scope="module")
def run():
    with bench_run() as run:
        yield run


@pytest.mark.parametrize("name", CASES)
def test_a_large_case_of_a_right_subject_holds(run, name):
    case = CASES[name]
    trial = run.examiner(run.subject("aggregated")).examine(case)
    assert not trial.internal
    assert {verdict.property: verdict.outcome.name for verdict in trial.verdicts}["forward"] == "HOLDS"
    assert not [verdict for verdict in trial.verdicts if verdict.outcome.name == "VIOLATED"]
    (forward,) = [verdict for verdict in trial.verdicts if verdict.property == "forward"]
    if name != "not finite":
        elements = sum(math.prod(case.shape_of(rank)) for rank in range(case.world_size))
        assert forward.elements == elements


SPOILT = """
import torch
from verify.subjects.aggregated import {name}

class Spoilt({name}):
    def forward(self, x):
        y = super().forward(x)
        if len(y) > {index}[0]:
            change = torch.zeros_like(y)
            change[{index}] = 0.01
            y = y + change
        return y
"""


@pytest.mark.parametrize("place", [0, 5003, 3 * 4941 - 1])
def test_one_wrong_element_of_a_large_output_is_told_by_its_index(run, tmp_path, place):
    index = (place // 4941, 7, *divmod(place % 4941, 61))
    file = tmp_path / "spoilt.py"
    file.write_text(SPOILT.format(name="Aggregated", index=index))
    trial = run.examiner(run.subject(f"{file}:Spoilt")).examine(IMAGES)
    (one,) = [one for verdict in trial.verdicts for one in verdict.discrepancies]
    ranks = [rank for rank in (0, 2) if index[0] < IMAGES.batches[rank]]
    assert (one.quantity, one.index, one.mismatched) == ("output.0", index, len(ranks))
    assert one.mismatched_ranks == tuple(ranks)

"""Sampling: of a large step the same positions are always judged, by what they are expected to be anyway."""

from __future__ import annotations

import math

import numpy as np
import pytest

from properties import sampling
from properties.case import Case, Special, Step
from properties.catalogue import judge
from properties.domain import Contract
from properties.expectation import expect
from properties.observation import Observation, RankObservation, Tensor
from properties.sampling import sample
from properties.verdict import Outcome

CASE = Case(
    batches=(9, 0, 14, 1),
    channels=3,
    spatial=((4, 5),),
    random_parameters=True,
    dtype="float64",
    param_dtype="float64",
)
CASES = {
    "training": CASE,
    "evaluation": Case(
        batches=(20, 3), channels=2, spatial=((9,),), steps=(Step(mode="train"), Step(mode="eval"))
    ),
    "groups": Case(batches=(12, 3, 12, 3), channels=2, spatial=((4, 4),), groups=((0, 3), (1, 2))),
    "not finite": Case(
        batches=(12, 12),
        channels=4,
        spatial=((9,),),
        specials=(Special(kind="nan", rank=1, sample=3, channel=2),),
    ),
    "expanded": Case(batches=(30, 4), channels=2, spatial=((6,),), cotangent_layout="expanded"),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Cases of some hundred elements count as large, and a rank has some dozen positions in a sample."""
    monkeypatch.setattr(sampling, "SAMPLED_ABOVE", 150)
    monkeypatch.setattr(sampling, "_ELEMENTS", 200)
    monkeypatch.setattr(sampling, "_LEAST", 16)


def test_a_step_is_sampled_by_its_elements_in_the_group(monkeypatch):
    assert sample(CASE, (0, 1, 2, 3), 0) is not None
    assert sample(CASE, (1, 3), 0) is None
    monkeypatch.setattr(sampling, "SAMPLED_ABOVE", 3 * 24 * 20)
    assert sample(CASE, (0, 1, 2, 3), 0) is None


def test_the_sample_has_edges_and_others_and_depends_on_the_choices_alone():
    one = sample(CASE, (0, 1, 2, 3), 0)
    assert [len(positions) for positions in one.own][1] == 0
    for positions, n in zip(one.own, (180, 0, 280, 20), strict=True):
        assert len(positions) <= 200 // 3 // 4
        assert n == 0 or {0, 1, n - 2, n - 1} <= set(positions.tolist()) <= set(range(n))
    assert 4 < len(one.own[0]) < 180
    again, other = sample(CASE, (0, 1, 2, 3), 0), sample(CASE, (0, 1, 2, 3), 1)
    assert all(map(np.array_equal, one.own, again.own))
    assert not np.array_equal(one.own[0], other.own[0])


@pytest.mark.parametrize("name", CASES)
def test_a_sample_is_expected_to_be_what_the_whole_is_expected_to_be(name):
    case = CASES[name]
    part, whole = (expect(case, Contract(), "A", every_element=every) for every in (False, True))
    assert part.tensors.keys() == whole.tensors.keys()
    assert (part.tracked, part.digests) == (whole.tracked, whole.digests)
    sampled = 0
    for key, by_rank in whole.tensors.items():
        for rank, interval in by_rank.items():
            one = part.tensors[key][rank]
            assert one.shape == interval.shape
            assert one.unjudged == interval.value.size - one.value.size
            assert (one.positions is not None) == key.startswith(("output", "grad_input"))
            sampled += one.unjudged
            for got, wanted in ((one.value, interval.value), (one.bound, interval.bound)):
                tensor = Tensor(dtype="float64", array=np.array(wanted))
                np.testing.assert_allclose(got, one.of(tensor), rtol=1e-9, atol=1e-300)
    assert sampled


def observed(expected, case):
    """What a rank gives back that computes exactly."""
    ranks = []
    for rank in range(case.world_size):
        tensors = {
            name: Tensor(
                dtype="float64", array=np.where(np.isnan(one.value), np.nan, one.value), requires_grad=True
            )
            for name, by_rank in expected.tensors.items()
            for one in [by_rank[rank]]
        }
        ranks.append(RankObservation(rank=rank, ending="returned", tensors=tensors))
    return ranks


def test_a_wrong_element_is_told_by_its_index_if_it_is_in_the_sample():
    part, whole = (expect(CASE, Contract(), "A", every_element=every) for every in (False, True))
    inside = part.tensors["output.0"][2].positions[7]
    outside = next(p for p in range(280) if p not in part.tensors["output.0"][2].positions)
    for position, outcome in ((inside, Outcome.VIOLATED), (outside, Outcome.HOLDS)):
        ranks = observed(whole, CASE)
        place, channel = divmod(int(position), 20), 1
        index = (place[0], channel, *divmod(place[1], 5))
        ranks[2].tensors["output.0"].array[index] += 1.0
        (verdict,) = judge(CASE, Observation(ranks=tuple(ranks)), part, Contract(), only=("forward",))
        assert verdict.outcome is outcome
        elements = sum(part.tensors["output.0"][rank].value.size for rank in range(4))
        assert (verdict.elements, verdict.unjudged) == (elements, 24 * 20 * 3 - elements)
        if outcome is Outcome.VIOLATED:
            (found,) = verdict.discrepancies
            assert (found.rank, found.index, found.channels, found.mismatched) == (2, index, (1,), 1)
            assert (found.elements, found.sampled) == (elements, True)
            assert math.isclose(found.observed - found.expected, 1.0)


def test_a_finite_element_of_a_poisoned_channel_is_told_by_its_index():
    case = CASES["not finite"]
    part, whole = (expect(case, Contract(), "A", every_element=every) for every in (False, True))
    ranks = observed(whole, case)
    ranks[0].tensors["output.0"].array[11, 2, 8] = 1.0  # the last position
    verdicts = judge(case, Observation(ranks=tuple(ranks)), part, Contract(), only=("nonfinite",))
    (found,) = verdicts[0].discrepancies
    assert (found.quantity, found.rank, found.index, found.mismatched) == ("output.0", 0, (11, 2, 8), 1)

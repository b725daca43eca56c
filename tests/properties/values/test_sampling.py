"""Sampling: of a large step the same positions are always given back, and judged as they are in the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest

from properties.case import Case, Special, Step
from properties.domain import Contract
from properties.expectation.expect import expect
from properties.judge.catalogue import judge
from properties.observation import Observation, RankObservation, Tensor
from properties.values import elements, period, sampling
from properties.values.sampling import sample
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
    assert sample(CASE, 0, 0) is not None
    assert sample(Case(batches=(12, 1, 12, 1), channels=7, groups=((0, 2), (1, 3))), 0, 0) is not None
    assert sample(Case(batches=(12, 1, 12, 1), channels=7, groups=((0, 2), (1, 3))), 1, 0) is None
    monkeypatch.setattr(sampling, "SAMPLED_ABOVE", 3 * 24 * 20)
    assert sample(CASE, 0, 0) is None


def test_the_sample_has_edges_and_others_and_depends_on_the_choices_alone():
    own = [sample(CASE, rank, 0) for rank in range(4)]
    assert len(own[1]) == 0
    for positions, n in zip(own, (180, 0, 280, 20), strict=True):
        assert len(positions) <= 200 // 3 // 4
        assert n == 0 or {0, 1, n - 2, n - 1} <= set(positions.tolist()) <= set(range(n))
    assert 4 < len(own[0]) < 180
    again, other = ([sample(CASE, rank, step) for rank in range(4)] for step in (0, 1))
    assert all(map(np.array_equal, own, again))
    assert not np.array_equal(own[0], other[0])


def given_back(case, expected, *, at=lambda name, rank: None):
    """Return what ranks give back that compute exactly, of some tensors at some positions."""
    ranks = []
    for rank in range(case.world_size):
        tensors = {}
        for name, by_rank in expected.tensors.items():
            interval = by_rank[rank].complete()
            positions = at(name, rank)
            tensors[name] = Tensor(
                dtype="float64",
                array=np.array(interval.at(positions).value),
                requires_grad=True,
                positions=positions,
                logical_shape=() if positions is None else interval.shape,
            )
        ranks.append(RankObservation(rank=rank, ending="returned", tensors=tensors))
    return ranks


def sampled(case):
    """Return which positions of its tensors a rank gives back."""
    return lambda name, rank: (
        sample(case, rank, int(name.partition(".")[2])) if name.startswith(("output", "grad_input")) else None
    )


@pytest.fixture(params=[True, False], ids=["one period", "whole"])
def repeats(request, monkeypatch):
    """Have blocks of some dozen positions repeat, or none."""
    if request.param:
        monkeypatch.setattr(elements, "_SMALL", 0)
        monkeypatch.setattr(period, "REPEATS_ABOVE", 50)
        monkeypatch.setattr(period, "_ELEMENTS", 50)
        monkeypatch.setattr(period, "_LEAST", 11)


@pytest.mark.parametrize("name", CASES)
def test_an_interval_at_a_sample_is_the_whole_one_at_its_positions(name, repeats):
    case = CASES[name]
    expected = expect(case, Contract(), "A")
    left = 0
    for key, by_rank in expected.tensors.items():
        for rank, interval in by_rank.items():
            positions = sampled(case)(key, rank)
            part, whole = interval.at(positions), interval.complete()
            assert part.shape == whole.shape
            assert part.unjudged == whole.value.size - part.complete().value.size
            left += part.unjudged
            for row, position in enumerate(() if positions is None else positions):
                n, c, *spatial = whole.shape
                at, inside = divmod(int(position), math.prod(spatial))
                for got, wanted in ((part.value, whole.value), (part.bound, whole.bound)):
                    np.testing.assert_array_equal(
                        got[row], wanted.reshape(n, c, math.prod(spatial))[at, :, inside]
                    )
    assert left


def test_a_wrong_element_is_told_by_its_index_if_it_is_in_the_sample(repeats):
    expected = expect(CASE, Contract(), "A")
    sizes = [len(sample(CASE, rank, 0)) * 3 for rank in range(4)]
    for row in (None, 7):
        ranks = given_back(CASE, expected, at=sampled(CASE))
        output = ranks[2].tensors["output.0"]
        if row is not None:
            output.array[row, 1] += 1.0
        (verdict,) = judge(CASE, Observation(ranks=tuple(ranks)), expected, Contract(), only=("forward",))
        assert verdict.outcome is (Outcome.HOLDS if row is None else Outcome.VIOLATED)
        assert (verdict.elements, verdict.unjudged) == (sum(sizes), 24 * 20 * 3 - sum(sizes))
        if row is not None:
            (found,) = verdict.discrepancies
            at, inside = divmod(int(output.positions[row]), 20)
            assert (found.rank, found.index, found.channels) == (2, (at, 1, *divmod(inside, 5)), (1,))
            assert (found.elements, found.sampled, found.mismatched) == (sum(sizes), True, 1)
            assert math.isclose(found.observed - found.expected, 1.0)


def test_a_finite_element_of_a_poisoned_channel_is_told_by_its_index(repeats):
    case = CASES["not finite"]
    expected = expect(case, Contract(), "A")
    ranks = given_back(case, expected, at=sampled(case))
    ranks[0].tensors["output.0"].array[-1, 2] = 1.0  # the last position
    verdicts = judge(case, Observation(ranks=tuple(ranks)), expected, Contract(), only=("nonfinite",))
    (found,) = verdicts[0].discrepancies
    assert (found.quantity, found.rank, found.index, found.mismatched) == ("output.0", 0, (11, 2, 8), 1)


@pytest.mark.parametrize("spatial", [(), (7,), (3, 4), (2, 3, 2)])
def test_a_rank_captures_the_sample_in_any_layout(spatial):
    torch = pytest.importorskip("torch")
    from verify.ranks.worker.capture import capture

    plain = torch.arange(9 * 2 * math.prod(spatial), dtype=torch.float32).reshape(9, 2, *spatial)
    axes = tuple(reversed(range(plain.dim())))
    positions = np.array([0, 2, 9 * math.prod(spatial) - 1])
    for laid in (
        plain,
        plain.permute(axes).contiguous().permute(axes),
        plain.repeat(1, 2, *spatial and [1] * len(spatial))[:, :2],
    ):
        kept = capture(laid, beside=plain, positions=positions)
        assert kept.sampled
        wanted = plain.reshape(9, 2, -1).transpose(1, 2).reshape(-1, 2)[positions].numpy()
        np.testing.assert_array_equal(kept.array, wanted)
    assert not capture(plain[:1], beside=plain, positions=positions).sampled

"""Predictions: a variant without a difference is the reference, and a difference shows where it must."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

from properties.case import Case, Step
from properties.diagnosis.prediction import predict
from properties.diagnosis.variant import RIGHT, Merge, Variant, own
from properties.domain import Contract, Domain
from properties.expectation.expect import expect
from properties.generation.strategies import random_case


def usual_cases(count):
    source, domain, found = random.Random(3), Domain(), []
    while len(found) < count:
        case = random_case(source, domain, probes=False)
        elements = case.channels * sum(map(case.count_of, range(case.world_size)))
        if not case.wrong and not case.ragged_grad and not case.specials and elements < 2000:
            found.append(case)
    return found


@pytest.mark.parametrize("case", usual_cases(25), ids=lambda case: case.id)
def test_without_a_difference_it_is_the_reference(case):
    right = expect(case, Contract(), "A")
    same = predict(case, Contract(), "A", variant=RIGHT)
    assert same.tracked == right.tracked
    assert same.tensors.keys() == right.tensors.keys()
    for name, by_rank in right.tensors.items():
        assert same.tensors[name].keys() == by_rank.keys()
        for rank, interval in by_rank.items():
            other = same.tensors[name][rank]
            decided = np.isfinite(interval.bound) & np.isfinite(other.bound) & np.isfinite(interval.value)
            gap = np.abs(other.value - interval.value)[decided]
            assert np.all(gap <= interval.bound[decided]), name


def test_a_difference_shows_where_it_must_and_nowhere_else():
    case = Case(batches=(2, 5), rank_offset=4, steps=(Step(), Step(mode="eval")), random_parameters=True)
    right = expect(case, Contract(), "A")
    local = predict(
        case, Contract(), "A", variant=Variant(merge=Merge(own, own, lambda ranks: 0 * own(ranks)))
    )
    for rank in (0, 1):
        for name in ("output.0", "running_mean.end", "output.1"):
            wrong, wanted = local.tensors[name][rank], right.tensors[name][rank]
            assert np.any(np.abs(wrong.value - wanted.value) > 1000 * wanted.bound), name
        same = local.tensors["grad_bias.0"][rank], right.tensors["grad_bias.0"][rank]
        np.testing.assert_allclose(same[0].value, same[1].value)
    assert not np.allclose(
        local.tensors["running_mean.end"][0].value, local.tensors["running_mean.end"][1].value
    )


def test_a_contract_of_the_variant_replaces_the_subject_s():
    case = Case(batches=(2, 3))
    biased = predict(case, Contract(), "A", variant=Variant(contract={"running_var": "biased"}))
    wanted = expect(case, msgspec.structs.replace(Contract(), running_var="biased"), "A")
    for rank in (0, 1):
        np.testing.assert_allclose(
            biased.tensors["running_var.end"][rank].value, wanted.tensors["running_var.end"][rank].value
        )

"""Running buffers: which roundings a contract admits in their update, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expect import expect
from properties.values.elements import parameters, round_to

U = 2.0**-24
NAMES = ("running_mean.end", "running_var.end")


def intervals(case, contract):
    """Return what is expected of both buffers at the end, on rank 0."""
    expected = expect(case, contract, "A")
    return [expected.tensors[name][0] for name in NAMES]


def test_a_buffer_that_is_kept_may_be_read_in_float32_where_the_contract_accumulates_in_it():
    case = Case(
        batches=(3, 2),
        channels=8,
        dtype="float64",
        param_dtype="float64",
        momentum=0.0,
        random_parameters=True,
    )
    start = parameters(case)
    old = np.concatenate([start.running_mean, start.running_var])
    narrow, plain = (
        (np.concatenate([one.value for one in both]), np.concatenate([one.bound for one in both]))
        for both in (intervals(case, Contract(accumulate="float32")), intervals(case, Contract()))
    )
    away = np.abs(np.float32(old) - narrow[0])
    assert (away <= narrow[1]).all()
    assert (away > plain[1]).any()
    assert (narrow[1] <= 2 * U * np.abs(old) + 2.0**-120).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_new_moment_may_be_rounded_to_the_buffers_dtype_where_the_contract_updates_in_it(dtype):
    """With momentum 1 nothing else rounds but, in the variance, the correction, and old + (new - old)."""
    case = Case(batches=(3, 2), channels=8, dtype=dtype, param_dtype=dtype, momentum=1.0, rank_offset=4)
    u = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    for found, roundings in zip(intervals(case, Contract(buffer_update="in_dtype")), (1.1, 7), strict=True):
        away = np.abs(round_to(found.value, dtype) - found.value)
        assert (away <= found.bound).all()
        assert (found.bound <= roundings * u * (np.abs(found.value) + roundings // 7) + 4 * 2.0**-14).all()

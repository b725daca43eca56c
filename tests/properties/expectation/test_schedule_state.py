"""What is put among the expected tensors: which elements may be stored as an infinity, and of which sign."""

from __future__ import annotations

import numpy as np
import pytest

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expect import start
from properties.expectation.schedule_state import put
from properties.judge.bounded import ratios
from properties.values.elements import drawn

LARGEST = 65504.0


@pytest.mark.parametrize(
    ("value", "bound", "observed", "right"),
    [
        (1.0, 0.5, np.inf, False),
        (LARGEST, 32.0, np.inf, True),
        (LARGEST, 32.0, -np.inf, False),
        (-LARGEST, 32.0, -np.inf, True),
        (3e5, 2e5, np.inf, True),
        (3e5, 2e5, -np.inf, False),
        (3e5, 5e10, -np.inf, True),  # any number of the dtype is within the bound, and both infinities are
        (3e5, 5e10, np.inf, True),
        (-3e5, 5e10, 7.0, True),
        (0.0, 7e4, -np.inf, True),
    ],
)
def test_an_infinity_is_right_where_the_bound_reaches_beyond_the_dtype_on_its_side(
    value: float, bound: float, observed: float, right: bool
) -> None:
    case = Case(dtype="float16", batches=(2,))
    walk = start(
        case, Contract(), "A", device="cpu", group=(0,), inputs=drawn(case, (0,), channels_last=True)
    )
    put(walk, "output.0", 0, np.array([value]), np.array([bound]), dtype="float16")
    interval = walk.tensors["output.0"][0]
    ratio = ratios(interval.value, interval.bound, interval.overflows, np.array([observed]))
    assert bool(ratio[0] <= 1) is right

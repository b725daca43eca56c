"""Errors of half arithmetic cover what half arithmetic does, down to its smallest numbers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from properties.mechanisms.carrying import Moments
from properties.mechanisms.half_precision import evaluation_error


@pytest.mark.parametrize("eps", [1e-12, 1e-8, 3e-8, 1e-6, 1e-5, 1e-3, 1.0])
def test_an_evaluation_in_float16_lies_within_its_error_or_is_undecided(eps):
    """Every variance that float16 holds, the subnormal ones and 0 too, as torch's strided kernel takes it."""
    var = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        total = (var.astype(np.float32) + np.float32(eps)).astype(np.float16)
        root = np.sqrt(total.astype(np.float32)).astype(np.float16)
        observed = (np.float32(1.0) / root.astype(np.float32)).astype(np.float16).astype(np.float64)
    exact = var.astype(np.float64)
    scale, zero = 1.0 / np.sqrt(exact + eps), np.zeros(len(exact))
    scalars = SimpleNamespace(eps=eps, eps_error=2.0**-24 * eps, eta=2.0**-126, u=2.0**-24)
    moments = Moments(zero, zero, exact, zero, scale, 8.0 * 2.0**-24 * scale)
    error = evaluation_error(SimpleNamespace(scalars=scalars), moments, "float16")
    decided = np.isfinite(error)
    assert (np.abs(observed - scale) <= error + moments.scale_error)[decided].all()
    # Undecided is what the smallest number of the dtype may use up, and nothing else.
    assert (exact + eps)[~decided].max(initial=0.0) < 2.0**-23
    assert decided[exact + eps > 2.0**-23].all()
    tight = decided & (exact + eps > 1e-3) & (exact < 1e3)
    assert (error[tight] < 4.0 * 2.0**-11 * scale[tight]).all()

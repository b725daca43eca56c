"""Decoding: moments of ranks that travel as mean, 1 / sqrt(var + eps) and count, as in torch.

A variance is decoded as 1 / s^2 - eps, which errs by some u (var + eps); with eps = 0 a variance that was
computed as zero is sent as s = 0 and decoded as infinite. Counts come in the dtype of the buffers, and the
sum that divides a merge is of it, too; the one that divides the squares is an integer, added up in float32
(`batch_norm_reduce_statistics_kernel` in aten/src/ATen/native/cuda/Normalization.cuh).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from properties.case import Dtype
from properties.mechanisms.step_data import Bools, Floats, StepData
from properties.values.elements import round_to

_INT_MAX = 2.0**31 - 1.0
_ROUNDINGS = 8.0
"""Of a decoded variance: s stored, 1 / s, its square, the difference, on var + eps; squaring doubles two."""
_SMALLEST = {"float32": 2.0**-149, "float64": 2.0**-1074}
_BITS = {"float32": 24, "float64": 53}


class LocalMoments(NamedTuple):
    """Mean and biased variance of each rank's values, their errors, each (ranks, C); counts (ranks, 1)."""

    counts: Floats
    mean: Floats
    mean_error: Floats
    var: Floats
    var_error: Floats


def local_moments(data: StepData) -> LocalMoments:
    """Return each rank's moments, with first-order errors of a two-pass computation of the given depth."""
    s, counts = data.scalars, data.counts
    n = np.maximum(counts, 1.0)
    with np.errstate(all="ignore"):
        mean = data.by_rank(data.x) / n
        away = data.x - data.at(mean)
        var = data.by_rank(away**2) / n
        mean_error = (s.depth_u + s.u) * data.by_rank(np.abs(data.x)) / n + s.eta
        first = mean_error + s.u * np.sqrt(data.by_rank(data.x**2) / n)
        var_error = (s.depth_u + 3.0 * s.u) * var + 2.0 * np.sqrt(var) * first + first**2 + 2.0 * s.eta
    return LocalMoments(counts, mean, mean_error, var, var_error)


def decoding_error(local: LocalMoments, data: StepData) -> Floats:
    """Return the error of each rank's decoded variance, (ranks, C)."""
    s = data.scalars
    error: Floats = _ROUNDINGS * s.u * (local.var + local.var_error + s.eps) + 2.0 * s.eta
    return error


def zero_variances(local: LocalMoments, data: StepData, dtype: str) -> tuple[Bools, Bools]:
    """Return where a rank's variance is zero as computed in `dtype`: surely, and possibly, each (ranks, C).

    A sum of n equal values x is exact if n times x's significand fits in the dtype; the square of what is
    below half the root of the smallest number is zero.
    """
    smallest, n = _SMALLEST[dtype], np.maximum(local.counts, 1.0)
    away = data.greatest(np.abs(data.x - data.at(local.mean)))
    largest = data.greatest(np.abs(data.x))
    odd = n - (n % 2 == 0)  # j x has the significand of x times the odd part of j, for all j up to n
    exact = (away == 0) & (_significand(largest) * odd <= 2.0 ** _BITS[dtype])
    shift = np.where(exact, 0.0, local.mean_error)
    surely = (away + shift) * (1.0 + 4.0 * data.scalars.u) < np.sqrt(smallest / 2.0)
    seen = np.maximum(away - shift, 0.0) * (1.0 - 4.0 * data.scalars.u)
    held = local.counts >= 1
    return surely & held, (seen**2 / n <= 2.0 * smallest) & held


def _significand(values: Floats) -> Floats:
    """Return the odd integer that `values` are a power of two times of, 0 for zero."""
    mantissa, _ = np.frexp(values)
    integer = np.abs(np.ldexp(mantissa, 53)).astype(np.uint64)
    lowest = integer & (~integer + np.uint64(1))
    return np.where(integer > 0, integer / np.maximum(lowest, np.uint64(1)), 0.0)


class Merged(NamedTuple):
    """Merged mean and sum of centred squares, and their errors, each (C,); the total that divides them."""

    mean: Floats
    mean_error: Floats
    squares: Floats
    squares_error: Floats
    total: float


def merged_by_counts(local: LocalMoments, data: StepData, dtype: Dtype) -> Merged:
    """Return the merge of the ranks' decoded moments with counts added up in `dtype`."""
    u = data.scalars.u
    decoding = decoding_error(local, data)
    mean, mean_error, squares, squares_error = np.zeros((4, local.mean.shape[1]))
    count = 0.0
    with np.errstate(all="ignore"):
        for r in np.flatnonzero(local.counts[:, 0] >= 1):
            weight = float(round_to(local.counts[r], dtype)[0])
            total = float(round_to(round_to(np.array([count]), dtype) + weight, dtype)[0])
            factor = 1.0 / total
            away = mean - local.mean[r]
            away_error = mean_error + local.mean_error[r] + u * (np.abs(mean) + np.abs(local.mean[r]))
            between = count * weight * factor
            squares_error = (
                squares_error
                + weight * (local.var_error[r] + decoding[r])
                + between * (2.0 * np.abs(away) + away_error) * away_error
                + 8.0 * u * (np.abs(squares) + weight * local.var[r] + between * away**2)
            )
            squares = squares + weight * local.var[r] + away * away * count * weight * factor
            old, new = count * factor * mean, weight * factor * local.mean[r]
            mean_error = count * factor * mean_error + weight * factor * local.mean_error[r]
            mean_error = mean_error + 6.0 * u * (np.abs(old) + np.abs(new))
            mean, count = old + new, _truncated(float(np.float32(count) + np.float32(weight)))
    return Merged(mean, mean_error, squares, squares_error, count)


def _truncated(total: float) -> float:
    """Return `total` as CUDA converts it to a 32-bit int: towards zero, saturating, NaN to 0."""
    return 0.0 if np.isnan(total) else float(np.trunc(min(max(total, -_INT_MAX - 1.0), _INT_MAX)))

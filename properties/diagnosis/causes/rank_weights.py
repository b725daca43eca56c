"""Weights of the ranks that a wrong synchronisation uses, each from the ranks to (R, R).

A row is for the rank that computes, a column for the rank whose moment or sum is weighed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from properties.diagnosis.variant import Floats, Ranks, by_count
from reference.rounding import FACTS

# Weights of the ranks (rows: the rank that computes)


def equal(ranks: Ranks) -> Floats:
    """Return 1 / (number of ranks with values) for these, 0 for empty ones."""
    return ranks.rows(ranks.filled / max(ranks.filled.sum(), 1.0))


def equal_with_empty(ranks: Ranks) -> Floats:
    """Return 1 / (number of ranks), empty ones too."""
    return ranks.rows(np.ones(ranks.size) / ranks.size)


def by_samples(ranks: Ranks) -> Floats:
    """Return N_r / N, without regard to spatial sizes."""
    return ranks.rows(ranks.samples / max(ranks.samples.sum(), 1.0))


def ones(ranks: Ranks) -> Floats:
    """Return 1."""
    return np.ones((ranks.size, ranks.size))


def first(ranks: Ranks) -> Floats:
    """Return 1 for the first rank that has values, 0 for the others."""
    return ranks.rows(np.arange(ranks.size) == int(np.argmax(ranks.counts > 0)))


def pairs(ranks: Ranks) -> Floats:
    """Return n_r / n within pairs of neighbours, 0 outside."""
    near = np.arange(ranks.size)[:, None] // 2 == np.arange(ranks.size)[None] // 2
    counts: Floats = near * ranks.counts
    weights: Floats = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    return weights


def empty_as_one(ranks: Ranks) -> Floats:
    """Return n_r / n where an empty rank counts as one value."""
    counts = np.maximum(ranks.counts, 1.0)
    return ranks.rows(counts / counts.sum())


def permuted(shift: int) -> Any:
    """Return n_s / n, where s is the rank with values `shift` places after r."""

    def weigh(ranks: Ranks) -> Floats:
        counts, filled = np.zeros(ranks.size), np.flatnonzero(ranks.counts > 0)
        counts[filled] = ranks.counts[np.roll(filled, shift)]
        return ranks.rows(counts / ranks.total)

    return weigh


def equal_unbiased(ranks: Ranks) -> Floats:
    """Return n_r / (n_r - 1) / R: the average of the ranks' unbiased variances."""
    below = np.maximum(ranks.counts - 1.0, 1.0)
    return ranks.rows(ranks.counts / below / max(ranks.filled.sum(), 1.0))


def but_last(ranks: Ranks) -> Floats:
    """Return n_r / n over all ranks but the last."""
    kept = ranks.counts * (np.arange(ranks.size) < ranks.size - 1)
    return ranks.rows(kept / max(kept.sum(), 1.0))


def but_last_of_total(ranks: Ranks) -> Floats:
    """Return n_r / n, 0 for the last rank."""
    return ranks.rows(ranks.counts * (np.arange(ranks.size) < ranks.size - 1) / ranks.total)


def but_first(ranks: Ranks) -> Floats:
    """Return n_r / n over all ranks but the first."""
    kept = ranks.counts * (np.arange(ranks.size) > 0)
    return ranks.rows(kept / max(kept.sum(), 1.0))


def unbiased(ranks: Ranks) -> Floats:
    """Return n_r / (n - 1)."""
    return by_count(ranks) * ranks.total / max(ranks.total - 1.0, 1.0)


def world_over_group(ranks: Ranks) -> Floats:
    """Return n_r / n with n of the group proper."""
    return ranks.rows(ranks.counts / max((ranks.counts * ranks.group).sum(), 1.0))


def rounded_counts(dtype: str) -> Any:
    """Return weights whose counts were held in `dtype`: a name, `buffers` or `input`."""

    def weigh(ranks: Ranks) -> Floats:
        name = ranks.param_dtype if dtype == "buffers" else ranks.dtype if dtype == "input" else dtype
        bits = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}[name]
        fraction, exponent = np.frexp(ranks.counts)
        held = np.ldexp(np.round(np.ldexp(fraction, bits + 1)), exponent - bits - 1)
        held = np.where(held >= FACTS[name].overflow, np.inf, held)
        total = held.sum()
        return ranks.rows(np.where(np.isinf(total), 0.0, held / max(total, 1.0)))

    return weigh


# Weights of the backward sums


def own_count(ranks: Ranks) -> Floats:
    """Return 1 / n_q for the own rank q."""
    return np.diag(1.0 / np.maximum(ranks.counts, 1.0))


def own_over_total(ranks: Ranks) -> Floats:
    """Return 1 / n for the own rank."""
    return np.eye(ranks.size) / ranks.total


def mean_of_means(ranks: Ranks) -> Floats:
    """Return 1 / (R n_r)."""
    return ranks.rows(1.0 / (ranks.size * np.maximum(ranks.counts, 1.0)))


def world_times_own(ranks: Ranks) -> Floats:
    """Return 1 / (R n_q), q the rank that computes."""
    return 1.0 / (ranks.size * np.maximum(ranks.counts, 1.0))[:, None] * np.ones((1, ranks.size))


def over_ranks(ranks: Ranks) -> Floats:
    """Return 1 / R."""
    return np.ones((ranks.size, ranks.size)) / ranks.size


def over_mean(ranks: Ranks) -> Floats:
    """Return 1 / (n // R), the mean count of a rank."""
    return ranks.rows(1.0 / max(ranks.total // ranks.size, 1.0))


def over_own(ranks: Ranks) -> Floats:
    """Return 1 / n_q, q the rank that computes."""
    return 1.0 / np.maximum(ranks.counts, 1.0)[:, None] * np.ones((1, ranks.size))


def first_over_total(ranks: Ranks) -> Floats:
    """Return 1 / n for the first rank."""
    return first(ranks) / ranks.total


def but_last_over_total(ranks: Ranks) -> Floats:
    """Return 1 / n, 0 for the last rank."""
    return ranks.rows((np.arange(ranks.size) < ranks.size - 1) / ranks.total)


def times_ranks(ranks: Ranks) -> Floats:
    """Return R for the own rank."""
    return np.eye(ranks.size) * ranks.size


def by_ranks(ranks: Ranks) -> Floats:
    """Return 1 / R for the own rank."""
    return np.eye(ranks.size) / ranks.size


def factor(power: int) -> Any:
    """Return R^power for each rank."""
    return lambda ranks: np.full(ranks.size, float(ranks.size) ** power)

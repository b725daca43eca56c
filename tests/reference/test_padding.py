"""Shards: nothing is lost or mixed by packing, and padding stays small."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reference.padding import COMMON, layout, pack, unpack

counts = st.lists(st.integers(0, 300), min_size=1, max_size=8)


@given(counts, st.integers(1, 3), st.integers(1, 140))
def test_unpack_returns_what_was_packed(sizes, positions, channels):
    rng = np.random.Generator(np.random.Philox(len(sizes)))
    arrays = [rng.standard_normal((n, channels, positions)) for n in sizes]
    where = layout([n * positions for n in sizes], channels)
    packed = pack(where, arrays)
    for rank, array in enumerate(arrays):
        np.testing.assert_array_equal(unpack(where, packed, rank, array.shape), array)
    assert np.count_nonzero(packed) == sum(array.size for array in arrays)


@given(counts)
def test_each_real_position_belongs_to_one_rank(sizes):
    where = layout(sizes, 1)
    owned = [where.mask[where.owner == rank].sum() for rank in range(len(sizes))]
    assert owned == sizes
    assert where.mask.sum() == sum(sizes)
    assert not where.mask[where.owner == where.bucket.ranks].any()


def test_uneven_ranks_cost_what_they_hold_and_not_the_largest_rank_each():
    where = layout([65536, 1, 1, 1, 1, 1, 1, 1], 1)
    assert where.bucket.shards * where.bucket.length <= 4 * 65536


def test_buckets_are_few():
    buckets = {
        layout([a, b], c).bucket for a in range(40) for b in range(0, 400, 37) for c in (1, 3, 5, 7, 65, 130)
    }
    assert len(buckets) <= 16


@given(st.lists(st.integers(0, 64), min_size=1, max_size=8), st.integers(1, 72))
def test_small_cases_lie_in_the_common_buckets(sizes, channels):
    assert layout(sizes, channels).bucket in COMMON

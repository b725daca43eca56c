"""Block sums: what a block of threads adds up, thread by thread."""

from __future__ import annotations

import math

import pytest
import torch

from verify.subjects.block_sums import added_by_a_block


def thread_by_thread(terms, samples, dtype):
    """Return the sum of `terms` (samples, positions) as the kernel's threads have it, one at a time."""
    positions = terms.shape[1]
    rows = min(2 ** int(math.log2(samples)), 16)
    columns = min(next((size for size in (32, 64, 128, 256) if positions <= size), 512), 512 // rows)
    threads = []
    for y in range(rows):
        for x in range(columns):
            own = torch.zeros(())
            for sample in range(y, samples, rows):
                for position in range(x, positions, columns):
                    own = own + terms[sample, position]
            threads.append(own)
    warps = [shuffled(threads[start : start + 32], dtype) for start in range(0, len(threads), 32)]
    return shuffled(warps + [torch.zeros(())] * (32 - len(warps)), dtype)


def shuffled(values, dtype):
    for offset in (16, 8, 4, 2, 1):
        values = [values[i] + values[i + offset].to(dtype).float() for i in range(offset)]
    return values[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("samples", "positions"), [(1, 1), (2, 2), (3, 40), (17, 5), (5, 600), (40, 1)])
def test_partial_sums_are_rounded_where_a_thread_hands_them_on(dtype, samples, positions):
    generator = torch.Generator().manual_seed(samples)
    terms = torch.randn(2, samples * positions, generator=generator).to(dtype).float()
    like = torch.empty(samples, 2, positions, dtype=dtype)
    added = added_by_a_block(terms, like)
    # A thread's own terms are added up in another order here: exact in float32, of few and coarse ones.
    wanted = [thread_by_thread(one.view(samples, positions), samples, dtype) for one in terms]
    torch.testing.assert_close(added, torch.stack(wanted), rtol=2e-6, atol=2e-6)


def test_the_sum_is_that_of_a_gpu():
    terms = torch.tensor([[0.82080078, 0.64697266, -0.51025391, -0.62890625]])
    assert float(added_by_a_block(terms, torch.empty(2, 1, 2, dtype=torch.float16))) == 0.3291015625

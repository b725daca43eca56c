"""What only size shows: indices, counts and launch grids that end before a large batch does.

There are no kernels here: the right result is changed as the flaw of one would change it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from verify.subjects.aggregated import (
    Aggregated,
    Moments,
    Normalise,
    Statistics,
    gather_moments,
    local_moments,
)
from verify.subjects.channels import columns

_PROMISE = {"domain": {**Aggregated.syncbn_verify["domain"], "sizes": ["network"]}}
_MOST_ROWS = 65_535
_MOST_BLOCKS = 1 << 16
_WARP, _BLOCK = 32, 1024
_FLOAT_COUNTS = 1 << 24


def _without_elements_from(x: Tensor, first: int) -> Tensor:
    """Return `x` with zeros from this element on, counted in logical order."""
    if x.numel() <= first:
        return x
    kept = x.reshape(-1).clone()
    kept[first:] = 0
    return x.copy_(kept.view(x.shape))


class RowsOfAGrid(Aggregated):
    """Normalises the first 65535 rows (n, c), as many as a grid has blocks in its second dimension."""

    syncbn_verify = _PROMISE

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        with torch.no_grad():
            _without_elements_from(y, _MOST_ROWS * (x.numel() // max(x.shape[0] * x.shape[1], 1)))
        return y


class _BlocksOf16Bits(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        grad_input, *others = Normalise.backward(ctx, dy)
        if grad_input is not None:
            _without_elements_from(grad_input, _MOST_BLOCKS * _WARP)
        return grad_input, *others


class BlocksOf16Bits(Aggregated):
    """Computes grad_input in blocks of a warp whose number is held in 16 bits: the first 2^21 elements."""

    syncbn_verify = _PROMISE
    rule = _BlocksOf16Bits


class IndexAsFloat(Aggregated):
    """Computes an element's index in a float32: from 2^24 on, every second one is its neighbour's."""

    syncbn_verify = _PROMISE

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        if x.numel() > _FLOAT_COUNTS:
            with torch.no_grad():
                flat = y.reshape(-1).clone()
                late = torch.arange(_FLOAT_COUNTS, flat.numel(), device=x.device)
                flat[late] = flat[late.to(torch.float32).long().clamp_(max=flat.numel() - 1)]
                y.copy_(flat.view(y.shape))
        return y


class CountByOnes(Aggregated):
    """Counts the elements of its batch in a float32, one by one, and divides by the channels."""

    syncbn_verify = _PROMISE

    def merge(self, parts: list[Moments]) -> Statistics:
        most = _FLOAT_COUNTS // self.num_features
        return super().merge([replace(part, count=min(part.count, most)) for part in parts])


class ProductOf32Bits(Aggregated):
    """Merges two batches with the product of their counts in 32 bits, which wraps round."""

    syncbn_verify = _PROMISE

    def merge(self, parts: list[Moments]) -> Statistics:
        filled = [part for part in parts if part.count]
        if not filled:
            return super().merge(parts)
        whole = filled[0]
        for part in filled[1:]:
            n, delta = whole.count + part.count, part.mean - whole.mean
            product = (whole.count * part.count + (1 << 31)) % (1 << 32) - (1 << 31)
            m2 = whole.m2 + part.m2 + delta.square() * (product / n)
            whole = Moments(n, whole.mean + delta * (part.count / n), m2)
        wanted = any(part.wants_gradient for part in parts)
        return Statistics(whole.count, whole.mean, (whole.m2 / whole.count).clamp(min=0), wanted)


class TailOfOutput(Aggregated):
    """Launches as many blocks of 1024 elements as are full, if there is more than one."""

    syncbn_verify = _PROMISE

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        with torch.no_grad():
            _without_elements_from(y, max(y.numel() // _BLOCK, 1) * _BLOCK)
        return y


class TailOfSums(Aggregated):
    """Takes moments over as many blocks of 1024 values a channel as are full, if there is more than one."""

    syncbn_verify = _PROMISE

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        data = columns(x)
        full = max(data.shape[1] // _BLOCK, 1) * _BLOCK
        kept = local_moments(data[:, :full].T) if data.shape[1] else local_moments(x)
        whole = replace(kept, count=data.shape[1], wants_gradient=wants_gradient)
        return self.merge([whole] if group is None else gather_moments(whole, group))

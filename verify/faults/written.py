"""Written subjects: right synchronized batch norms in plain torch, as people write them.

Autograd differentiates them. Each has the grade that its rounding deserves: moments centred by a mean and
blocked sums are A; sums one by one, B; raw products C: E[x^2] - E[x]^2, or the gradient that autograd makes
of a folded output, sum(g x) - mean sum(g).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.faults.right import _ANY_EPS, AllGather, Explicit, _invstd, _sum_over
from verify.faults.ways import (
    Written,
    all_reduced,
    by_detached_mean,
    by_doubles,
    by_means,
    by_products,
    by_raw_squares,
    by_scatter,
    by_segments,
    by_std_mean,
    by_sums,
    by_var,
    by_var_mean,
    direct,
    divided,
    folded,
    folded_fused,
    fused,
    gathered,
    gathered_columns,
    of_whole_batch,
    one_over_root,
    power,
    reciprocal,
    rsqrt,
    scaled,
    scattered,
    std_of_whole_batch,
    stepped,
    weight_divided,
    weighted_first,
    whole_batch,
)

WORLD: dict[str, Any] = {"domain": {"groups": ["world"], **_ANY_EPS}}
"""Of torch's differentiable all_gather: its backward takes ranks of a group for those of the world."""


class SumsRsqrt(Written):
    """Sums centred by the mean; rsqrt."""

    moments, root, shape = by_sums, rsqrt, direct


class SumsOneOverRoot(Written):
    """Sums centred by the mean; 1 / sqrt, the weight first."""

    moments, root, shape = by_sums, one_over_root, weighted_first


class SumsPower(Written):
    """Sums centred by the mean; the power -0.5, one scale."""

    moments, root, shape = by_sums, power, scaled


class SumsDivided(Written):
    """Sums centred by the mean; a division by the root."""

    moments, root, shape = by_sums, rsqrt, divided


class MeansReciprocal(Written):
    """E[(x - m)^2] of each rank; reciprocal of the root, addcmul."""

    moments, root, shape = by_means, reciprocal, fused


class MeansRsqrt(Written):
    """E[(x - m)^2] of each rank; bias plus a step."""

    moments, root, shape = by_means, rsqrt, stepped


class MeansWeightDivided(Written):
    """E[(x - m)^2] of each rank; weight over the root."""

    moments, root, shape = by_means, rsqrt, weight_divided


class DetachedPower(Written):
    """Squares centred by a detached mean; the power -0.5."""

    moments, root, shape = by_detached_mean, power, direct


class VarMeanRsqrt(Written):
    """torch.var_mean of each rank; rsqrt."""

    moments, root, shape = by_var_mean, rsqrt, scaled


class VarMeanDivided(Written):
    """torch.var_mean; torch's differentiable all_reduce."""

    moments, root, shape, over = by_var_mean, rsqrt, divided, all_reduced


class VarOneOverRoot(Written):
    """mean and var of each rank, gathered."""

    moments, root, shape, over = by_var, one_over_root, direct, gathered_columns


class StdMeanRsqrt(Written):
    """torch.std_mean of each rank, squared."""

    moments, root, shape = by_std_mean, rsqrt, weighted_first


class StdMeanPower(Written):
    """torch.std_mean of each rank; reduce_scatter."""

    moments, root, shape, over = by_std_mean, power, fused, scattered


class RawRsqrt(Written):
    """E[x^2] - E[x]^2; rsqrt."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "C"}
    moments, root, shape = by_raw_squares, rsqrt, direct


class RawDivided(Written):
    """E[x^2] - E[x]^2; a division by the root."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "C"}
    moments, root, shape, over = by_raw_squares, rsqrt, divided, all_reduced


class RawFolded(Written):
    """E[x^2] - E[x]^2; folded output."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "C"}
    moments, root, shape = by_raw_squares, one_over_root, folded


class SumsFolded(Written):
    """Folded output, whose gradient is of raw products."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "C"}
    moments, root, shape = by_sums, rsqrt, folded


class VarMeanFolded(Written):
    """torch.var_mean; folded output by addcmul."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "C"}
    moments, root, shape = by_var_mean, power, folded_fused


class SegmentsRsqrt(Written):
    """Sums by index_add, one value after the other."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "B"}
    moments, root, shape = by_segments, rsqrt, direct


class ScatterDivided(Written):
    """Sums by scatter_add, one value after the other."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "B"}
    moments, root, shape = by_scatter, rsqrt, divided


class ProductsReciprocal(Written):
    """Sums as products with ones."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "B"}
    moments, root, shape = by_products, reciprocal, scaled


class DoublesRsqrt(Written):
    """Moments in float64, the rest in the accumulation dtype."""

    moments, root, shape = by_doubles, rsqrt, scaled


class ReduceScatter(Written):
    """Sums by reduce_scatter and all_gather."""

    moments, root, shape, over = by_sums, rsqrt, direct, scattered


class FunctionalAllReduce(Written):
    """Sums by torch's differentiable all_reduce."""

    moments, root, shape, over = by_sums, one_over_root, stepped, all_reduced


class FunctionalAllGather(Written):
    """Moments by torch's differentiable all_gather."""

    syncbn_verify = WORLD
    moments, root, shape, over = by_means, rsqrt, direct, gathered


class WholeVarMean(Written):
    """torch.var_mean of the gathered batch."""

    moments, root, shape = of_whole_batch, rsqrt, fused


class WholeStd(Written):
    """Mean and std of the gathered batch."""

    moments, root, shape = std_of_whole_batch, reciprocal, weighted_first


class WholeInDoubles(SumsRsqrt):
    """The whole layer in float64, whatever the input's dtype."""

    accumulate_in = torch.float64


class NativeOnWhole(AllGather):
    """`F.batch_norm` on the gathered batch, and plain formulas for eps 0, which it refuses.

    The backward of its kernel adds a plane up in the lanes of a vector, in float32: grade B.
    """

    syncbn_verify = {"domain": _ANY_EPS, "grade": "B"}

    def normalise(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
        if self.eps == 0:
            return super().normalise(x, group)
        whole, start = whole_batch(x, group), 0
        if group is not None:
            before = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=x.device)
            before[dist.get_rank(group) + 1 :] = x.shape[1]
            start = int(_sum_over(group, before)[dist.get_rank(group)])
        parameters = [None if p is None else p.to(x.dtype) for p in (self.weight, self.bias)]
        y = torch.nn.functional.batch_norm(
            whole[None].contiguous(), None, None, *parameters, training=True, eps=self.eps
        )[0]
        with torch.no_grad():
            var, mean = torch.var_mean(whole, 1, correction=0)
        return y[:, start : start + x.shape[1]], mean, var


class _RawApply(torch.autograd.Function):
    """(x - mean) invstd weight + bias, whose gradients are of raw products: sum(dy x) - mean sum(dy)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, n: int, group: Any
    ) -> Tensor:
        ctx.save_for_backward(x, moments, weight)
        ctx.n, ctx.group = n, group
        return (x - moments[0, :, None]) * (moments[1] * weight)[:, None] + bias[:, None]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, (mean, invstd), weight = ctx.saved_tensors
        own = torch.stack([dy.sum(1), (dy * x).sum(1)])
        total = _sum_over(ctx.group, own)
        slope = (total[1] - mean * total[0]) * invstd * invstd / ctx.n
        centred = x - mean[:, None]
        dx = (dy - (total[0] / ctx.n)[:, None] - centred * slope[:, None]) * (invstd * weight)[:, None]
        dw = (own[1] - mean * own[0]) * invstd if x.shape[1] else own[1]
        return dx, None, dw, own[0], None, None


class RawSums(Explicit):
    """A right forward in two passes, and gradients of raw products."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "C"}

    def normalise(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            mean = _sum_over(group, x.sum(1)) / self.total
            var = _sum_over(group, (x - mean[:, None]).square().sum(1)) / self.total
        ones = torch.ones_like(mean)
        weight = ones if self.weight is None else self.weight.to(x.dtype)
        bias = ones * 0 if self.bias is None else self.bias.to(x.dtype)
        moments = torch.stack([mean, _invstd(var, self.eps)])
        return _RawApply.apply(x, moments, weight, bias, self.total, group), mean, var

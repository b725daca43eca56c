"""Cross-node aggregation of statistics: a synchronized batch norm with one collective in each direction.

Forward: every rank reduces its own batch to (count, mean, M2) for each channel, one `all_gather` exchanges
these moments, and every rank merges them in rank order (Chan, Golub, LeVeque 1983, eq. 1.5):

    n = sum n_r,    mu = mu_0 + sum (n_r / n) (mu_r - mu_0)
    M2 = sum M2_r + sum n_r (mu_r - mu)^2,    var = M2 / n

Backward: one `all_reduce` of sum g and sum g xhat, then

    grad_input = (g - sum g / n - xhat sum(g xhat) / n) * invstd * weight

Rules
-----
- Whatever decides about a collective or a refusal is known to all ranks of the group before it is acted upon:
  shapes and dtypes are checked before anything is sent, the global count is judged after everything was
  received.
- Statistics, buffers and gradients are computed in the accumulation dtype (float32 for half inputs) and
  rounded once.

Theory of operation
-------------------
Why a gather and not an all-reduce of count-weighted sums: sum x and sum x^2 lose everything where mean^2 >>
var; centred squares need the global mean first, hence a second collective. Moments merge without cancellation
in one. Summed into a (world, 2 C + 3) tensor of slots, of which each rank fills its row, an `all_reduce`
would give the same bits, but takes 1.3 to 2.7 times as long over gloo (2 and 4 ranks, 1 to 1024 channels) and
sends `world` times the bytes. Since every rank merges the same bits in the same order, buffers are bit-equal
on all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from verify.subjects.channels import accumulation_dtype, across, columns, native_layout, uncolumns
from verify.subjects.converting import Converter

_SPLIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of one batch: count, mean and centred sum of squares (C,), and whether it wants a gradient."""

    count: int
    mean: Tensor
    m2: Tensor
    wants_gradient: bool = False


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a training step normalises with.

    Attributes:
        count: Values a channel in the whole batch of the group.
        mean, var: Of each channel (C,), var biased.
        wants_gradient: Whether the input requires a gradient on any rank of the group.
    """

    count: int
    mean: Tensor
    var: Tensor
    wants_gradient: bool = False


def local_moments(x: Tensor) -> Moments:
    """Return the moments of `x` (N, C, ...), two-pass; zeros where it is empty.

    M2 is corrected by the residual of the rounded mean: M2 = sum d^2 - (sum d)^2 / n with d = x - mean.
    """
    data = columns(x)
    n = data.shape[1]
    mean = data.sum(1) / max(n, 1)
    d = data - mean[:, None]
    return Moments(n, mean, (d.square().sum(1) - d.sum(1).square() / max(n, 1)).clamp_(min=0))


def gather_moments(own: Moments, group: Any) -> list[Moments]:
    """Return the moments of all ranks of `group`, in rank order, by one `all_gather`.

    A count travels as two numbers below 2^24, which every accumulation dtype holds exactly.
    """
    high, low = divmod(own.count, _SPLIT)
    header = own.mean.new_tensor([high, low, own.wants_gradient])
    payload = torch.cat([header, own.mean, own.m2])
    received = [torch.empty_like(payload) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, payload, group=group)
    channels = own.mean.numel()
    return [
        Moments(int(row[0]) * _SPLIT + int(row[1]), row[3 : 3 + channels], row[3 + channels :], bool(row[2]))
        for row in received
    ]


def merge(parts: list[Moments]) -> Statistics:
    """Return the statistics of the union of batches; mean and variance are zero if it is empty."""
    wanted = any(part.wants_gradient for part in parts)
    filled = [part for part in parts if part.count]
    n = sum(part.count for part in filled)
    if not filled:
        return Statistics(0, parts[0].mean, parts[0].m2, wanted)
    means = torch.stack([part.mean for part in filled])
    counts = means.new_tensor([part.count for part in filled])[:, None]
    mean = means[0] + ((counts / n) * (means - means[0])).sum(0)
    m2 = torch.stack([part.m2 for part in filled]).sum(0) + (counts * (means - mean).square()).sum(0)
    return Statistics(n, mean, m2 / n, wanted)


def inverse_deviation(var: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(var + eps), and 0 where that is 1 / 0, as torch's batch norm has it."""
    shifted = var + eps
    return torch.where(shifted == 0, torch.zeros_like(shifted), shifted.rsqrt())


class Normalise(torch.autograd.Function):  # type: ignore[misc]
    """y = (x - mean) * invstd * weight + bias, with the gradient through mean and invstd of the whole batch.

    Arguments of `apply`: x (N, C, ...); weight and bias (C,) or None; mean and invstd (C,) in the
    accumulation dtype; count, the values a channel that they were taken over, or None if they are constants;
    group, where the backward sums are all-reduced, or None; anchor, a tensor that requires a gradient, or
    None: with it the backward runs, and takes part in the collective, though nothing on this rank wants a
    gradient.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        count: int | None,
        group: Any,
        anchor: Tensor | None,
    ) -> Tensor:
        del anchor
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.count, ctx.group = count, group
        ctx.bias_dtype = None if bias is None else bias.dtype
        y = (x.to(mean.dtype) - across(mean, x)) * across(invstd, x)
        if weight is not None:
            y = y * across(weight.to(mean.dtype), x)
        if bias is not None:
            y = y + across(bias.to(mean.dtype), x)
        return native_layout(y.to(x.dtype), x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight, mean, invstd = ctx.saved_tensors
        g = columns(dy)
        xhat = (columns(x) - mean[:, None]) * invstd[:, None]
        sum_g, sum_g_xhat = g.sum(1), (g * xhat).sum(1)
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_weight = sum_g_xhat.to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = sum_g.to(ctx.bias_dtype)
        if ctx.group is not None:
            sums = torch.cat([sum_g, sum_g_xhat])
            dist.all_reduce(sums, group=ctx.group)
            sum_g, sum_g_xhat = sums.chunk(2)
        if ctx.needs_input_grad[0]:
            scale = invstd if weight is None else invstd * weight.to(mean.dtype)
            if ctx.count is not None:
                n = max(ctx.count, 1)
                g = g - (sum_g / n)[:, None] - xhat * (sum_g_xhat / n)[:, None]
            grad_input = native_layout(uncolumns(g * scale[:, None], x), x)
        return grad_input, grad_weight, grad_bias, None, None, None, None, None


class Aggregated(_BatchNorm):  # type: ignore[misc]
    """Synchronized batch norm over a process group; see the module's docstring.

    Takes what `torch.nn.SyncBatchNorm` takes. `process_group` None is the default group, if there is one. The
    steps of a forward are methods (statistics, merge, track, invstd, normalise), and its autograd function is
    `rule`, so that a fault replaces one and leaves the rest.

    Raises (in forward, on every rank of the group alike):
        ValueError: On fewer than two dimensions, a wrong number of channels, or one value a channel in
            training.
        TypeError: On an input that is not floating-point.
    """

    syncbn_verify = {"domain": {"ragged_grad": True, "eps": ["positive", "zero"]}}  # noqa: RUF012
    converter = Converter
    rule: Any = Normalise

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,  # noqa: FBT001, FBT002
        track_running_stats: bool = True,  # noqa: FBT001, FBT002
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.process_group = process_group

    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group: Any = None) -> Module:
        """Return `module` with its plain batch norms replaced; as `torch.nn.SyncBatchNorm` offers it."""
        return cls.converter(cls, process_group).convert(module)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised `input`, of the same shape and dtype."""
        self._check_input(input)
        if self.training:
            return self._train(input)
        if self.running_mean is None:
            return self.normalise(input, self._own_statistics(input), None)
        dtype = accumulation_dtype(input.dtype)
        mean, var = self.running_mean.to(dtype, copy=True), self.running_var.to(dtype)
        return self.rule.apply(input, self.weight, self.bias, mean, self.invstd(var), None, None, None)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"Expected an input of 2 or more dimensions, but got {x.dim()}.")
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"Expected {self.num_features} channels, but got an input of shape {tuple(x.shape)}."
            )
        if not x.is_floating_point():
            raise TypeError(f"Expected a floating-point input, but got {x.dtype}.")

    def _check_count(self, count: int) -> None:
        if count == 1:
            raise ValueError("Expected more than 1 value a channel in training, but got 1 over all ranks.")

    def _train(self, x: Tensor) -> Tensor:
        group = self._group()
        wanted = torch.is_grad_enabled() and x.requires_grad
        with torch.no_grad():
            statistics = self.statistics(x, group, wants_gradient=wanted)
            self._check_count(statistics.count)
            if self.track_running_stats:
                self.track(statistics)
        return self.normalise(x, statistics, group if statistics.wants_gradient else None)

    def _group(self) -> Any:
        """Return the process group to communicate in, or None if this rank is alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group if self.process_group is not None else dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        """Return the statistics of the whole batch, of which `x` is this rank's part."""
        own = replace(local_moments(x), wants_gradient=wants_gradient)
        return self.merge([own] if group is None else gather_moments(own, group))

    def merge(self, parts: list[Moments]) -> Statistics:
        """Return the statistics of the union of the ranks' batches."""
        return merge(parts)

    def _own_statistics(self, x: Tensor) -> Statistics:
        with torch.no_grad():
            own = self.merge([local_moments(x)])
        if own.count == 1:
            raise ValueError("Expected more than 1 value a channel without buffers, but got 1.")
        return own

    def track(self, statistics: Statistics) -> None:
        """Update the buffers in place: an empty batch counts, but changes neither mean nor variance."""
        self.num_batches_tracked.add_(1)
        if not statistics.count:
            return
        factor = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = statistics.var * (statistics.count / (statistics.count - 1))
        for buffer, new in ((self.running_mean, statistics.mean), (self.running_var, unbiased)):
            buffer.copy_((1 - factor) * buffer.to(new.dtype) + factor * new)

    def invstd(self, var: Tensor) -> Tensor:
        """Return what the centred input is multiplied by, (C,)."""
        return inverse_deviation(var, self.eps)

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        """Return the normalised `x`, with the gradient through `statistics`, whose sums `group` reduces."""
        invstd = self.invstd(statistics.var)
        anchor = None
        if group is not None and torch.is_grad_enabled() and not x.requires_grad:
            anchor = torch.zeros((), device=x.device, requires_grad=True)
        return self.rule.apply(
            x, self.weight, self.bias, statistics.mean, invstd, statistics.count, group, anchor
        )

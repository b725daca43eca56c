"""Ways of writing a layer in plain torch: moments, scale, output, sums over ranks.

A subject is a choice of four. What each is differentiated to is autograd's doing; the reference's forms say
how far its rounding may go.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor

from verify.faults.right import Right, _Gather, _ReduceSum


class Written(Right):
    """What all share; a subclass gives `moments`, `root`, `shape`, and may give `over`."""

    def over(self, tensor: Tensor, group: Any) -> Tensor:
        """Return the sum of `tensor` over the ranks, on each of them; differentiable."""
        total: Tensor = _ReduceSum.apply(tensor, group)
        return total

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance, each (C,), of the (C, n) of all ranks together."""
        raise NotImplementedError

    def root(self, shifted: Tensor) -> Tensor:
        """Return one over the root of the variance plus eps, (C,)."""
        raise NotImplementedError

    def shape(self, x: Tensor, mean: Tensor, shifted: Tensor) -> Tensor:
        """Return the output from the variance plus eps."""
        raise NotImplementedError

    def normalise(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = self.moments(x, group)
        return self.evaluate(x, mean, var), mean, var

    def evaluate(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if (
            x.shape[1] == 0
        ):  # A rank without values has gradients of zero, also of a channel that is NaN elsewhere.
            return self.scale((x - mean[:, None]) * self.root(var + self.eps)[:, None])
        return self.shape(x, mean, var + self.eps)

    def affine_in(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias in the dtype of `x`, each (C,); ones and zeros where there are none."""
        ones = x.new_ones(x.shape[0])
        weight = ones if self.weight is None else self.weight.to(x.dtype)
        return weight, ones * 0 if self.bias is None else self.bias.to(x.dtype)


# How the moments are taken.


def by_sums(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Sum and squares centred by the common mean."""
    mean = self.over(x.sum(1), group) / self.total
    return mean, self.over((x - mean[:, None]).square().sum(1), group) / self.total


def by_means(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """E[x] and E[(x - m)^2]: local means, weighed by the ranks' shares."""
    share = x.shape[1] / self.total
    mean = self.over(_mean(x) * share, group)
    return mean, self.over(_mean((x - mean[:, None]) ** 2) * share, group)


def by_detached_mean(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Squares centred by a mean without gradient: what it would add is zero."""
    mean = self.over(x.sum(1), group) / self.total
    return mean, self.over(torch.pow(x - mean.detach()[:, None], 2).sum(1), group) / self.total


def by_var_mean(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """`torch.var_mean` of each rank, merged."""
    var, mean = torch.var_mean(x, 1, correction=0) if x.shape[1] else (x.sum(1), x.sum(1))
    return _merged(self, x, (mean, var), group)


def by_std_mean(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """`torch.std_mean` of each rank, merged."""
    std, mean = torch.std_mean(x, 1, correction=0) if x.shape[1] else (x.sum(1), x.sum(1))
    return _merged(self, x, (mean, std * std), group)


def by_var(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """`mean` and `var` of each rank, merged."""
    var = x.var(1, unbiased=False) if x.shape[1] else x.sum(1)
    return _merged(self, x, (_mean(x), var), group)


def by_raw_squares(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """E[x^2] - E[x]^2, not below zero."""
    mean, square = self.over(torch.stack([x.sum(1), (x * x).sum(1)]), group) / self.total
    return mean, torch.clamp(square - mean * mean, min=0)


def by_segments(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Sums by `index_add`, one value of the flattened input after the other, as `bincount` has them."""
    mean = self.over(_segments(x), group) / self.total
    return mean, self.over(_segments((x - mean[:, None]).square()), group) / self.total


def by_scatter(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Sums by `scatter_add`."""
    channel = torch.arange(x.shape[0], device=x.device).repeat_interleave(x.shape[1])
    empty = x.new_zeros(x.shape[0])
    mean = self.over(empty.scatter_add(0, channel, x.reshape(-1)), group) / self.total
    squares = (x - mean[:, None]).square().reshape(-1)
    return mean, self.over(empty.scatter_add(0, channel, squares), group) / self.total


def by_products(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Sums as products with a vector of ones."""
    ones = x.new_ones(x.shape[1])
    mean = self.over(x @ ones, group) / self.total
    return mean, self.over((x - mean[:, None]).square() @ ones, group) / self.total


def by_doubles(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Sums in float64, rounded once."""
    mean = self.over(x.double().sum(1), group) / self.total
    var = self.over((x.double() - mean[:, None]).square().sum(1), group) / self.total
    return mean.to(x.dtype), var.to(x.dtype)


def of_whole_batch(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """`torch.var_mean` of the gathered batch."""
    var, mean = torch.var_mean(whole_batch(x, group), 1, correction=0)
    return mean, var


def std_of_whole_batch(self: Written, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Mean and `torch.std` of the gathered batch."""
    whole = whole_batch(x, group)
    return whole.mean(1), whole.std(1, correction=0) ** 2


def _mean(x: Tensor) -> Tensor:
    return x.mean(1) if x.shape[1] else x.sum(1)


def _merged(self: Written, x: Tensor, moments: tuple[Tensor, Tensor], group: Any) -> tuple[Tensor, Tensor]:
    """Return the moments of all ranks from those of each, weighed by their shares."""
    (own, var), share = moments, x.shape[1] / self.total
    mean = self.over(own * share, group)
    return mean, self.over((var + (own - mean) ** 2) * share, group)


def _segments(x: Tensor) -> Tensor:
    channel = torch.arange(x.shape[0], device=x.device).repeat_interleave(x.shape[1])
    return x.new_zeros(x.shape[0]).index_add(0, channel, x.reshape(-1))


def whole_batch(x: Tensor, group: Any) -> Tensor:
    """Return the (C, n) of all ranks, side by side; differentiable."""
    whole: Tensor = x if group is None else _Gather.apply(x, group)
    return whole


# What makes one over the standard deviation.


def rsqrt(self: Written, shifted: Tensor) -> Tensor:
    """Differentiated to -1/2 g rsqrt^3."""
    return torch.rsqrt(shifted)


def one_over_root(self: Written, shifted: Tensor) -> Tensor:
    """Differentiated to -g r r, and that over 2 sqrt."""
    return 1 / torch.sqrt(shifted)


def power(self: Written, shifted: Tensor) -> Tensor:
    """Differentiated to -1/2 g var^-3/2."""
    return shifted.pow(-0.5)


def reciprocal(self: Written, shifted: Tensor) -> Tensor:
    """As `one_over_root`."""
    return shifted.sqrt().reciprocal()


# The form of the output.


def direct(self: Written, x: Tensor, mean: Tensor, shifted: Tensor) -> Tensor:
    """((x - mean) invstd) weight + bias."""
    return self.scale((x - mean[:, None]) * self.root(shifted)[:, None])


def weighted_first(self: Written, x: Tensor, mean: Tensor, shifted: Tensor) -> Tensor:
    """Multiply from the left: weight (x - mean) invstd + bias."""
    weight, bias = self.affine_in(x)
    return weight[:, None] * (x - mean[:, None]) * self.root(shifted)[:, None] + bias[:, None]


def scaled(self: Written, x: Tensor, mean: Tensor, shifted: Tensor) -> Tensor:
    """(x - mean) (invstd weight) + bias."""
    weight, bias = self.affine_in(x)
    return (x - mean[:, None]) * (self.root(shifted) * weight)[:, None] + bias[:, None]


def stepped(self: Written, x: Tensor, mean: Tensor, shifted: Tensor) -> Tensor:
    """Step from the bias as `lerp` does: bias + scale (x - mean)."""
    weight, bias = self.affine_in(x)
    return bias[:, None] + (weight * self.root(shifted))[:, None] * (x - mean[:, None])


def fused(self: Written, x: Tensor, mean: Tensor, shifted: Tensor) -> Tensor:
    """`torch.addcmul` of bias, x - mean and scale."""
    weight, bias = self.affine_in(x)
    return torch.addcmul(bias[:, None], x - mean[:, None], (weight * self.root(shifted))[:, None])


def divided(self: Written, x: Tensor, mean: Tensor, shifted: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + eps) weight + bias."""
    return self.scale((x - mean[:, None]) / torch.sqrt(shifted)[:, None])


def weight_divided(self: Written, x: Tensor, mean: Tensor, shifted: Tensor) -> Tensor:
    """(x - mean) (weight / sqrt(var + eps)) + bias."""
    weight, bias = self.affine_in(x)
    return (x - mean[:, None]) * (weight / torch.sqrt(shifted))[:, None] + bias[:, None]


def folded(self: Written, x: Tensor, mean: Tensor, shifted: Tensor) -> Tensor:
    """Fold all into one scale and one shift: x scale + (bias - mean scale)."""
    weight, bias = self.affine_in(x)
    scale = weight * self.root(shifted)
    return x * scale[:, None] + (bias - mean * scale)[:, None]


def folded_fused(self: Written, x: Tensor, mean: Tensor, shifted: Tensor) -> Tensor:
    """`folded` by two `torch.addcmul`."""
    weight, bias = self.affine_in(x)
    scale = weight * self.root(shifted)
    shift = torch.addcmul(bias, mean, scale, value=-1)
    return torch.addcmul(shift[:, None], x, scale[:, None])


# How sums are taken over the ranks.


class _ReduceScatterSum(torch.autograd.Function):
    """A sum over ranks as reduce_scatter and all_gather; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _scattered_sum(x, group)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _scattered_sum(g, ctx.group), None


def _scattered_sum(x: Tensor, group: Any) -> Tensor:
    world = dist.get_world_size(group)
    flat = x.reshape(-1)
    padded = torch.cat([flat, flat.new_zeros(-flat.numel() % world)])
    own = padded.new_empty(padded.numel() // world)
    dist.reduce_scatter_tensor(own, padded, group=group)
    parts = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(parts, own, group=group)
    return torch.cat(parts)[: flat.numel()].reshape(x.shape)


def scattered(self: Written, tensor: Tensor, group: Any) -> Tensor:
    """reduce_scatter, then all_gather."""
    total: Tensor = tensor if group is None else _ReduceScatterSum.apply(tensor, group)
    return total


def all_reduced(self: Written, tensor: Tensor, group: Any) -> Tensor:
    """`torch.distributed.nn.functional.all_reduce`."""
    total: Tensor = tensor if group is None else differentiable.all_reduce(tensor, group=group)
    return total


def gathered(self: Written, tensor: Tensor, group: Any) -> Tensor:
    """`torch.distributed.nn.functional.all_gather`, and the sum of what it gives."""
    return tensor if group is None else torch.stack(differentiable.all_gather(tensor, group)).sum(0)


def gathered_columns(self: Written, tensor: Tensor, group: Any) -> Tensor:
    """An all_gather whose gradient is an all_reduce, and the sum of what it gives."""
    flat: Tensor = tensor.reshape(-1, 1)
    return whole_batch(flat, group).sum(1).reshape(tensor.shape)

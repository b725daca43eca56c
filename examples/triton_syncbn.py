"""Synchronized batch norm whose passes over the data are Triton kernels, interpreted where there is no GPU.

    python -m verify run --subject examples/triton_syncbn.py:SyncBN --cases 50

A rank sums twice: first to the mean of all ranks, then what is centred by it, so that the variance loses
nothing where the mean is large. Sums travel with their count, by one `all_reduce` each. The backward has one
kernel for its two sums and one for the gradient of the input.

Kernels see the data as rows, one a channel; a program takes one row. Interpreted, a case takes a second or
more, which is no hang: the suite says how long, and goes on.
"""

from __future__ import annotations

import os
from typing import ClassVar

import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are made

import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def sums_kernel(x, centre, sums, squares, length, BLOCK: tl.constexpr):
    """Of row c: sum x - centre[c], and sum (x - centre[c])^2."""
    c = tl.program_id(0)
    mu = tl.load(centre + c)
    total, square = 0.0, 0.0
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        d = tl.where(at < length, tl.load(x + c * length + at, mask=at < length, other=0.0) - mu, 0.0)
        total += tl.sum(d)
        square += tl.sum(d * d)
    tl.store(sums + c, total)
    tl.store(squares + c, square)


@triton.jit
def normalise_kernel(x, y, mean, scale, shift, length, BLOCK: tl.constexpr):
    """Of row c: y = (x - mean[c]) * scale[c] + shift[c]."""
    c = tl.program_id(0)
    mu, a, b = tl.load(mean + c), tl.load(scale + c), tl.load(shift + c)
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + c * length + at, mask=at < length)
        tl.store(y + c * length + at, (value - mu) * a + b, mask=at < length)


@triton.jit
def backward_sums_kernel(x, g, mean, invstd, sums, products, length, BLOCK: tl.constexpr):
    """Of row c: sum g, and sum g * (x - mean[c]) * invstd[c]."""
    c = tl.program_id(0)
    mu, r = tl.load(mean + c), tl.load(invstd + c)
    total, product = 0.0, 0.0
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < length
        dy = tl.load(g + c * length + at, mask=inside, other=0.0)
        d = tl.where(inside, tl.load(x + c * length + at, mask=inside, other=0.0) - mu, 0.0)
        total += tl.sum(dy)
        product += tl.sum(dy * (d * r))
    tl.store(sums + c, total)
    tl.store(products + c, product)


@triton.jit
def grad_input_kernel(x, g, dx, mean, invstd, scale, mean_g, mean_gx, length, BLOCK: tl.constexpr):
    """Of row c: dx = (g - mean_g[c] - xhat * mean_gx[c]) * scale[c]."""
    c = tl.program_id(0)
    mu, r, a = tl.load(mean + c), tl.load(invstd + c), tl.load(scale + c)
    mg, mgx = tl.load(mean_g + c), tl.load(mean_gx + c)
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < length
        xhat = (tl.load(x + c * length + at, mask=inside) - mu) * r
        dy = tl.load(g + c * length + at, mask=inside)
        tl.store(dx + c * length + at, (dy - mg - xhat * mgx) * a, mask=inside)


def rows(x: torch.Tensor) -> torch.Tensor:
    """Return `x` (N, C, ...) as contiguous rows (C, values)."""
    return x.transpose(0, 1).reshape(x.shape[1], x.numel() // max(x.shape[1], 1)).contiguous()


def unrows(data: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a copy of rows in the shape, dtype and memory format of `like`.

    A view is not returned from an autograd function: its caller could not change it in place.
    """
    shape = (like.shape[1], like.shape[0], *like.shape[2:])
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(like.dim(), torch.contiguous_format)
    as_last = like.is_contiguous(memory_format=last) and not like.is_contiguous()
    found = torch.empty(
        like.shape,
        dtype=like.dtype,
        device=like.device,
        memory_format=last if as_last else torch.contiguous_format,
    )
    return found.copy_(data.reshape(shape).transpose(0, 1))


def launch(kernel, data: torch.Tensor, *tensors: torch.Tensor) -> None:
    """Run `kernel` on the rows `data`, one program each; of rows without values nothing is asked."""
    if data.numel():
        kernel[(data.shape[0],)](data, *tensors, data.shape[1], BLOCK=BLOCK)


def centred_sums(data: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Return, for each row, the sums of what is centred and of its squares, (2, C)."""
    found = torch.zeros(2, data.shape[0], device=data.device)
    launch(sums_kernel, data, centre, *found)
    return found


def moments(x: torch.Tensor, group) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Return count, mean and biased variance of each channel over the ranks of `group`."""
    data = rows(x.float())
    channels, values = data.shape
    high, low = divmod(values, 1 << 20)  # numbers that float32 holds exactly
    counts = torch.tensor([float(high), float(low)], device=data.device)
    own = centred_sums(data, torch.zeros(channels, device=data.device))[0]
    high, low, *_ = sent = reduced(torch.cat([counts, own]), group)
    count = int(high) * (1 << 20) + int(low)
    mean = sent[2:] / max(count, 1)
    rest, squares = reduced(centred_sums(data, mean), group)
    return count, mean, ((squares - rest * (rest / max(count, 1))) / max(count, 1)).clamp(min=0)


def reduced(values: torch.Tensor, group) -> torch.Tensor:
    """Return `values` summed over the ranks of `group`; None is this rank alone."""
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(values, group=group)
    return values


class Normalise(torch.autograd.Function):
    """y = (x - mean) * invstd * weight + bias; with a count, gradients go through mean and invstd, too."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, invstd, count, group):  # noqa: D102
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.count, ctx.group = count, group
        data = rows(x.float())
        y = torch.empty_like(data)
        scale = invstd if weight is None else invstd * weight.float()
        shift = torch.zeros_like(mean) if bias is None else bias.float()
        launch(normalise_kernel, data, y, mean, scale, shift)
        return unrows(y, x)

    @staticmethod
    def backward(ctx, dy):  # noqa: D102
        x, weight, mean, invstd = ctx.saved_tensors
        data, g = rows(x.float()), rows(dy.float())
        sums, products = torch.zeros_like(mean), torch.zeros_like(mean)
        launch(backward_sums_kernel, data, g, mean, invstd, sums, products)
        grad_weight = products.to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = (
            sums.to(mean.dtype if weight is None else weight.dtype) if ctx.needs_input_grad[2] else None
        )
        means = None
        if ctx.count is not None:  # whatever this rank needs: its peers wait for it
            means = (reduced(torch.cat([sums, products]), ctx.group) / max(ctx.count, 1)).chunk(2)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias, None, None, None, None
        dx = torch.empty_like(data)
        scale = invstd if weight is None else invstd * weight.float()
        if means is None:
            zero = torch.zeros_like(scale)
            launch(normalise_kernel, g, dx, zero, scale, zero)
        else:
            launch(grad_input_kernel, data, g, dx, mean, invstd, scale, *means)
        return unrows(dx, x), grad_weight, grad_bias, None, None, None, None


def refuse_one(count: int) -> None:
    """Raise if there is a single value, whose variance says nothing."""
    if count == 1:
        raise ValueError("Expected more than 1 value a channel, but got 1.")


class SyncBN(torch.nn.modules.batchnorm._BatchNorm):
    """Batch norm over all ranks of `process_group`, in float32."""

    syncbn_verify: ClassVar = {"domain": {"dtypes": ["float32"]}, "case_seconds": 30}

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,  # noqa: FBT002
        track_running_stats=True,  # noqa: FBT002
        process_group=None,
        device=None,
        dtype=None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.process_group = process_group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised `x`."""
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(f"Expected {self.num_features} channels, but got {tuple(x.shape)}.")
        if not x.is_floating_point():
            raise TypeError(f"Expected a floating-point input, but got {x.dtype}.")
        if self.training:
            return self._train(x, self.process_group or dist.group.WORLD)
        count = None
        if self.running_mean is None:
            count, mean, var = moments(x, None)
            refuse_one(count)
        else:
            mean, var = self.running_mean.float().clone(), self.running_var.float()
        return self._normalise(x, mean, var, count, None)

    def _train(self, x, group):
        count, mean, var = moments(x.detach(), group)
        refuse_one(count)
        if self.track_running_stats:
            self._track(count, mean, var)
        return self._normalise(x, mean, var, count, group)

    def _track(self, count, mean, var):
        self.num_batches_tracked.add_(1)
        if count:
            factor = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
                buffer.copy_((1 - factor) * buffer.float() + factor * new)

    def _normalise(self, x, mean, var, count, group):
        invstd = 1.0 / (var + self.eps).sqrt()
        return Normalise.apply(x, self.weight, self.bias, mean, invstd, count, group)

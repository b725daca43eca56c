"""Right subjects: synchronized batch norms that are right, each written differently from all others.

A suite that accuses one of them is wrong. They differ in how the moments are taken (two passes, Welford, one
pass, over gathered data), in what travels, in the form of the output and in where the gradient comes from: a
formula (`Explicit`) or torch's autograd through differentiable collectives (`AllReduce`, `AllGather`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from verify.subjects.channels import native_layout

_ANY_EPS = {"eps": ["positive", "zero"]}


def _sum_over(group: Any, tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over the ranks of `group`, on each of them."""
    total = tensor.clone()
    if group is not None:
        dist.all_reduce(total, group=group)
    return total


def _rows(x: Tensor) -> Tensor:
    """Return (N, C, ...) as (C, n)."""
    return x.movedim(1, 0).reshape(x.shape[1], x.numel() // x.shape[1])


def _unrows(rows: Tensor, like: Tensor) -> Tensor:
    """Return (C, n) in the shape (N, C, ...) and the memory format of `like`."""
    n, c, *spatial = like.shape
    return native_layout(rows.reshape(c, n, *spatial).movedim(0, 1), like)


def _invstd(var: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(var + eps), 0 where that is 1 / 0; its gradient is finite."""
    shifted = var + eps
    safe = torch.where(shifted == 0, torch.ones_like(shifted), shifted)
    return torch.where(shifted == 0, torch.zeros_like(safe), 1 / safe.sqrt())


class Right(_BatchNorm):
    """What all share: constructor, refusals, buffers, evaluation, empty batches.

    A subclass gives `normalise(x, group) -> (y, mean, var)`, with x (C, n) in the accumulation dtype.
    """

    syncbn_verify: dict[str, Any] = {"domain": _ANY_EPS}
    accumulate_in: torch.dtype | None = None
    total: int = 0

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
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

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError(
                f"Expected a floating-point (N, {self.num_features}, ...), but got {input.shape}."
            )
        half = input.dtype in (torch.float16, torch.bfloat16)
        dtype = self.accumulate_in or (torch.float32 if half else input.dtype)
        x = _rows(input).to(dtype)
        if self.training:
            y = self._train(x)
        elif self.running_mean is not None:
            y = self.evaluate(
                x, self.running_mean.to(dtype, copy=True), self.running_var.to(dtype, copy=True)
            )
        else:
            self._refuse_one(x.shape[1])
            y = self._over(x, None, x.shape[1])[0] if x.shape[1] else self.scale(x)
        return _unrows(y.to(input.dtype), input)

    def scale(self, xhat: Tensor) -> Tensor:
        """Return weight * xhat + bias."""
        y = xhat * 1
        if self.weight is not None:
            y = y * self.weight.to(xhat.dtype)[:, None]
        return y if self.bias is None else y + self.bias.to(xhat.dtype)[:, None]

    def normalise(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def evaluate(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Return the output for given moments, each (C,) in the accumulation dtype."""
        return self.scale((x - mean[:, None]) * _invstd(var, self.eps)[:, None])

    def _train(self, x: Tensor) -> Tensor:
        group = self._group()
        count = int(_sum_over(group, torch.tensor([x.shape[1]], device=x.device)))
        self._refuse_one(count)
        if self.track_running_stats:
            self.num_batches_tracked += 1
        if count == 0:
            return self.scale(x)
        y, mean, var = self._over(x, group, count)
        if self.track_running_stats:
            self._track(mean.detach(), self.corrected(var.detach(), count))
        return y

    def corrected(self, var: Tensor, count: int) -> Tensor:
        """Return the unbiased variance for the biased one."""
        return var * count / (count - 1)

    def _over(self, x: Tensor, group: Any, count: int) -> tuple[Tensor, Tensor, Tensor]:
        self.total = count
        return self.normalise(x, group)

    def _track(self, mean: Tensor, var: Tensor) -> None:
        factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            old = buffer.to(new.dtype)
            buffer.copy_(old + factor * (new - old) if factor != 1 else new)

    def _group(self) -> Any:
        if not (dist.is_available() and dist.is_initialized()):
            return None
        return self.process_group or dist.group.WORLD

    @staticmethod
    def _refuse_one(count: int) -> None:
        if count == 1:
            raise ValueError("Expected more than one value a channel.")


class _Apply(torch.autograd.Function):
    """(x - mean) * invstd with the gradient through the statistics, by torch's own formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, invstd: Tensor, subject: Any, group: Any) -> Tensor:
        ctx.save_for_backward(x, mean, invstd)
        ctx.n, ctx.summed, ctx.group = subject.total, subject.summed, group
        return (x - mean[:, None]) * invstd[:, None]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, invstd = ctx.saved_tensors
        xmu = x - mean[:, None]
        sums = _sum_over(ctx.group, torch.stack([ctx.summed(dy), ctx.summed(dy * xmu)]))
        slope = invstd * invstd * sums[1] / ctx.n
        dx = (dy - (sums[0] / ctx.n)[:, None] - xmu * slope[:, None]) * invstd[:, None]
        return dx, None, None, None, None


class Explicit(Right):
    """A subject whose gradient is a formula; a subclass gives `moments(x, group) -> (mean, var)`."""

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def normalise(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            mean, var = self.moments(x, group)
            invstd = _invstd(var, self.eps)
        return self.output(x, mean, invstd, group), mean, var

    def output(self, x: Tensor, mean: Tensor, invstd: Tensor, group: Any) -> Tensor:
        return self.scale(_Apply.apply(x, mean, invstd, self, group))

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over n of `values` (C, n), of which the gradient is made."""
        return values.sum(1)


class TwoPass(Explicit):
    """The sum first, then the squares of what is centred by the global mean: two all-reduces."""

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        mean = _sum_over(group, x.sum(1)) / self.total
        return mean, _sum_over(group, (x - mean[:, None]).square().sum(1)) / self.total


class Welford(Explicit):
    """One element of each channel after the other (Welford 1962); ranks merged one after the other."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "B"}

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        mean, m2 = x.new_zeros(x.shape[0]), x.new_zeros(x.shape[0])
        for n, value in enumerate(x.t().contiguous(), 1):
            delta = value - mean
            mean = mean + delta / n
            m2 = m2 + delta * (value - mean)
        if group is None:
            return mean, m2 / self.total
        own = torch.cat([mean, m2, mean.new_tensor([x.shape[1]])])
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, own, group=group)
        n, mean, m2 = 0, torch.zeros_like(mean), torch.zeros_like(m2)
        for one in gathered:
            other_mean, other_m2, count = one[: mean.numel()], one[mean.numel() : -1], int(one[-1])
            if count:
                delta = other_mean - mean
                m2 = m2 + other_m2 + delta * delta * (n * count / (n + count))
                mean = mean + delta * (count / (n + count))
                n += count
        return mean, m2 / n


class OnePass(Explicit):
    """E[x^2] - E[x]^2, not below zero: one all-reduce, and cancellation where the mean is large."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "C"}

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        mean, square = _sum_over(group, torch.stack([x.sum(1), x.square().sum(1)])) / self.total
        return mean, (square - mean * mean).clamp(min=0)


class Sequential(Explicit):
    """Two passes whose sums add one sample after the other, in the accumulation dtype."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "B"}

    def total_of(self, values: Tensor, group: Any) -> Tensor:
        """Return the sum of `values` (C, n) over all ranks, (C,)."""
        total = values.new_zeros(values.shape[0])
        for value in values.t().contiguous():
            total += value
        return _sum_over(group, total)

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        mean = self.total_of(x, group) / self.total
        return mean, self.total_of((x - mean[:, None]).square(), group) / self.total


class Pairwise(Sequential):
    """Two passes whose sums add one half of the samples to the other until one is left."""

    syncbn_verify = {"domain": _ANY_EPS, "grade": "A"}

    def total_of(self, values: Tensor, group: Any) -> Tensor:
        while values.shape[1] > 1:
            half = (values.shape[1] + 1) // 2
            rest = values[:, half:]
            values = torch.cat([values[:, : rest.shape[1]] + rest, values[:, rest.shape[1] : half]], dim=1)
        return _sum_over(group, values.sum(1))


class Blocks(Explicit):
    """Moments of blocks of 128 samples on every rank, merged in a tree; ranks by three all-reduces."""

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        blocks = [(b.shape[1], b.mean(1), b.var(1, correction=0) * b.shape[1]) for b in x.split(128, 1)]
        while len(blocks) > 1:
            merged = [self.merged(*pair) for pair in zip(blocks[::2], blocks[1::2], strict=False)]
            blocks = merged + blocks[2 * len(merged) :]
        n, mean, m2 = blocks[0] if x.shape[1] else (0, x.sum(1), x.sum(1))
        whole = _sum_over(group, n * mean) / self.total
        return whole, _sum_over(group, m2 + n * (mean - whole).square()) / self.total

    @staticmethod
    def merged(a: tuple[int, Tensor, Tensor], b: tuple[int, Tensor, Tensor]) -> tuple[int, Tensor, Tensor]:
        """Return the moments (n, mean, M2) of two blocks together (Chan, Golub, LeVeque 1983)."""
        n, delta = a[0] + b[0], b[1] - a[1]
        return n, a[1] + delta * (b[0] / n), a[2] + b[2] + delta.square() * (a[0] * b[0] / n)


class Float64(TwoPass):
    """Two passes in float64 whatever the input's dtype."""

    accumulate_in = torch.float64


class _Fold(torch.autograd.Function):
    """x * scale + shift with the gradient through the statistics; scale and shift hold weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor, mean: Tensor, invstd: Tensor, n: int, group: Any
    ) -> Tensor:
        ctx.save_for_backward(x, w, mean, invstd)
        ctx.n, ctx.group = n, group
        scale = invstd * w
        return x * scale[:, None] + (b - mean * scale)[:, None]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, invstd = ctx.saved_tensors
        db, dot = dy.sum(1), (dy * (x - mean[:, None])).sum(1)
        dx = None
        if ctx.needs_input_grad[0]:
            sums = _sum_over(ctx.group, torch.stack([db, dot])) / ctx.n
            k = sums[1] * invstd * invstd
            dx = (dy - sums[0][:, None] - (x - mean[:, None]) * k[:, None]) * (invstd * w)[:, None]
        # A rank without values has gradients of zero, also of a channel that is NaN elsewhere.
        dw = dot * invstd if x.shape[1] else dot
        return dx, dw, db, None, None, None, None


class Folded(TwoPass):
    """The output as torch's CPU kernel has it: x * (invstd * weight) + (bias - mean * invstd * weight)."""

    def output(self, x: Tensor, mean: Tensor, invstd: Tensor, group: Any) -> Tensor:
        one, zero = torch.ones_like(mean), torch.zeros_like(mean)
        weight = one if self.weight is None else self.weight.to(x.dtype)
        bias = zero if self.bias is None else self.bias.to(x.dtype)
        return _Fold.apply(x, weight, bias, mean, invstd, self.total, group)


class _ReduceSum(torch.autograd.Function):
    """A sum over ranks whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _sum_over(group, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _sum_over(ctx.group, g.contiguous()), None


class Shared(torch.autograd.Function):
    """A parameter that all ranks share: the identity, whose gradient is divided, then summed."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, group: Any, divisor: int) -> Tensor:
        ctx.group, ctx.divisor = group, divisor
        return parameter.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _sum_over(ctx.group, g / ctx.divisor), None, None


class AllReduce(Right):
    """Plain formulas over a differentiable all-reduce; the gradient is torch's autograd."""

    def normalise(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
        mean = _ReduceSum.apply(x.sum(1), group) / self.total
        centred = x - mean[:, None]
        var = _ReduceSum.apply(centred.square().sum(1), group) / self.total
        return self.scale(centred * _invstd(var, self.eps)[:, None]), mean, var


class _Gather(torch.autograd.Function):
    """The columns (C, n_r) of all ranks side by side; the gradient is what all ranks send back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        counts = torch.zeros(world, dtype=torch.int64, device=x.device)
        counts[rank] = x.shape[1]
        sizes = [int(n) for n in _sum_over(group, counts)]
        padded = x.new_zeros(x.shape[0], max(sizes))
        padded[:, : x.shape[1]] = x
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded, group=group)
        ctx.group, ctx.start, ctx.stop = group, sum(sizes[:rank]), sum(sizes[: rank + 1])
        return torch.cat([part[:, :n] for part, n in zip(gathered, sizes, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _sum_over(ctx.group, g.contiguous())[:, ctx.start : ctx.stop], None


class AllGather(Right):
    """The whole batch on every rank, and the plain formulas over it; the gradient is torch's autograd."""

    def normalise(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
        whole = x if group is None else _Gather.apply(x, group)
        mean = whole.mean(1)
        var = (whole - mean[:, None]).square().mean(1)
        return self.scale((x - mean[:, None]) * _invstd(var, self.eps)[:, None]), mean, var

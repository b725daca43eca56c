"""Ranks exchange in pairs, at distance one, two and four: a butterfly merges moments, and adds sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import FORM

Join = Callable[[Tensor, Tensor], Tensor]


class Butterfly:
    """The ranks of a group; those beyond the greatest power of two go through a partner."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        self.power = 1 << (self.size.bit_length() - 1)

    def send(self, values: Tensor, rank: int) -> Any:
        """Send to a rank of the group."""
        return dist.isend(values, dist.get_global_rank(self.group, rank), group=self.group)

    def receive(self, like: Tensor, rank: int) -> Tensor:
        """Return what a rank of the group sends."""
        values = torch.empty_like(like)
        dist.recv(values, dist.get_global_rank(self.group, rank), group=self.group)
        return values

    def over_all(self, own: Tensor, join: Join) -> Tensor:
        """Return what all ranks have, joined in the same order everywhere."""
        own = self.folded_in(own.contiguous(), join)
        distance = 1
        while distance < self.power and self.rank < self.power:
            peer = self.rank ^ distance
            sent = self.send(own, peer)
            other = self.receive(own, peer)
            sent.wait()
            own = join(own, other) if self.rank < peer else join(other, own)
            distance *= 2
        return self.folded_out(own)

    def folded_in(self, own: Tensor, join: Join) -> Tensor:
        """Give what an extra rank has to its partner."""
        if self.rank >= self.power:
            self.send(own, self.rank - self.power).wait()
        elif self.rank + self.power < self.size:
            own = join(own, self.receive(own, self.rank + self.power))
        return own

    def folded_out(self, own: Tensor) -> Tensor:
        """Give the result to the extra ranks."""
        if self.rank >= self.power:
            return self.receive(own, self.rank - self.power)
        if self.rank + self.power < self.size:
            self.send(own, self.rank + self.power).wait()
        return own


def pair(a: Tensor, b: Tensor) -> Tensor:
    """Return the moments of two parts, each a count, means and centred squares (Chan, Golub and LeVeque)."""
    channels = len(a) // 2
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = (part.split([1, channels, channels]) for part in (a, b))
    n = n_a + n_b
    share = n_b / n.clamp(min=1)
    delta = torch.where((n_a > 0) & (n_b > 0), mean_b - mean_a, 0)
    mean = torch.where(n_a > 0, mean_a + delta * share, mean_b)
    return torch.cat([n, mean, m2_a + m2_b + delta * delta * (n_a * share)])


def pair_from_merged(a: Tensor, b: Tensor) -> Tensor:
    """Return moments, of which the squares take their distance from the merged mean."""
    merged = pair(a, b)
    channels = len(a) // 2
    n_a, (n_b, mean_b, m2_b) = a[:1], b.split([1, channels, channels])
    delta = torch.where((n_a > 0) & (n_b > 0), mean_b - merged[1 : 1 + channels], 0)
    between = delta * delta * (n_a * (n_b / merged[:1].clamp(min=1)))
    return torch.cat([merged[: 1 + channels], a[1 + channels :] + m2_b + between])


class Normalise(torch.autograd.Function):
    """(x - mean) * invstd of (C, n) for input and gradient of any dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, invstd: Tensor, count: int, ranks: Butterfly, layer: ButterflyPairs
    ) -> Tensor:
        ctx.save_for_backward(x, mean, invstd)
        ctx.count, ctx.ranks, ctx.layer = max(count, 1), ranks, layer
        return (x.to(mean.dtype) - mean[:, None]) * invstd[:, None]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, invstd = ctx.saved_tensors
        xhat = (x.to(mean.dtype) - mean[:, None]) * invstd[:, None]
        own = torch.cat([g.sum(1), (g * xhat).sum(1)])
        means = (ctx.ranks.over_all(own, torch.add) / ctx.count).view(2, -1, 1)
        dx = ctx.layer.elements(g, xhat, means, invstd[:, None], x.dtype)
        return dx.to(x.dtype), None, None, None, None, None


class ButterflyPairs(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

    pairing: Join = staticmethod(pair)
    merging: type[Butterfly] = Butterfly
    summing: type[Butterfly] = Butterfly

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("input does not fit")
        n, c, *rest = input.shape
        kind = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
        self.seen()
        x = input.transpose(0, 1).reshape(c, input.numel() // c)
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = self.process_group or dist.group.WORLD
            with torch.no_grad():
                own = self.own_moments(self.rows(input).to(kind))
                found = self.merging(group).over_all(own, self.pairing)
                count, mean, m2 = int(found[0]), found[1 : 1 + c].clone(), found[1 + c :]
                if count == 1:
                    raise ValueError("Expected more than one value per channel.")
                var = m2 / max(count, 1)
                if self.training and self.track_running_stats:
                    self.update(mean, var, count)
                invstd = (var + self.eps).rsqrt()
            y = Normalise.apply(x, mean, invstd, count, self.summing(group), self)
        else:
            mean = self.running_mean.to(kind, copy=True)
            y = (x.to(kind) - mean[:, None]) * (self.running_var.to(kind) + self.eps).rsqrt()[:, None]
        if self.weight is not None:
            y = y * self.weight.to(kind)[:, None]
        if self.bias is not None:
            y = y + self.bias.to(kind)[:, None]
        return y.reshape(c, n, *rest).transpose(0, 1).to(input.dtype).contiguous()

    def rows(self, input: Tensor) -> Tensor:
        """Return the input as (C, n), to be summed."""
        return input.transpose(0, 1).reshape(input.shape[1], input.numel() // input.shape[1])

    def own_moments(self, x: Tensor) -> Tensor:
        """Return count, means and centred squares of this rank."""
        n = x.shape[1]
        mean = x.sum(1) / max(n, 1)
        return torch.cat([mean.new_tensor([n]), mean, (x - mean[:, None]).square().sum(1)])

    def elements(self, g: Tensor, xhat: Tensor, means: Tensor, invstd: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the gradient of the input."""
        return (g - means[0] - xhat * means[1]) * invstd

    def seen(self) -> None:
        """Count the batch, if it is one to be trained on."""
        if self.training and self.track_running_stats:
            self.num_batches_tracked += 1

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the buffers."""
        if not count:
            return
        rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
            buffer.copy_(buffer.to(new.dtype) * (1 - rate) + new * rate)


class ExtrasKeptOut(Butterfly):
    """Only tells the extra ranks."""

    def folded_in(self, own: Tensor, join: Join) -> Tensor:
        return own


class ExtrasNotTold(Butterfly):
    """Only hears the extra ranks."""

    def folded_out(self, own: Tensor) -> Tensor:
        return own


class UnbiasedSquares(ButterflyPairs):
    """Multiplies torch's variance, which is the unbiased one, by the count."""

    def own_moments(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        own = super().own_moments(x)
        return own if n < 2 else torch.cat([own[: 1 + len(x)], x.var(1) * n])


class ReshapedWithoutTranspose(ButterflyPairs):
    """Reshapes (N, C, ...) to (C, n) as it lies for its moments, so that samples are taken for channels."""

    def rows(self, input: Tensor) -> Tensor:
        return input.reshape(input.shape[1], input.numel() // input.shape[1])


class ExtrasLeftOut(ButterflyPairs):
    """Leaves the moments of ranks beyond the power of two out, which only get the result."""

    merging = ExtrasKeptOut


class DistanceFromTheMerged(ButterflyPairs):
    """Takes the distance of two means after the first has been moved."""

    pairing = staticmethod(pair_from_merged)


class ExtrasKeepTheirSums(ButterflyPairs):
    """Sends no sums of the backward to ranks beyond the power of two, which go on with their own."""

    summing = ExtrasNotTold


class ElementsInHalf(ButterflyPairs):
    """Computes the elements of grad_input in the input's dtype."""

    def elements(self, g: Tensor, xhat: Tensor, means: Tensor, invstd: Tensor, dtype: torch.dtype) -> Tensor:
        return super().elements(g.to(dtype), xhat.to(dtype), means.to(dtype), invstd.to(dtype), dtype)


class CountsEvaluations(ButterflyPairs):
    """Counts a batch before it asks whether it is trained on."""

    def seen(self) -> None:
        if self.track_running_stats:
            self.num_batches_tracked += 1

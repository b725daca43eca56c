"""Moments of every sample, then of the rank, then of all ranks, as instance norms grow into batch norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import VIEW


class Moments(NamedTuple):
    """Counts (k,), means and sums of squared distances (k, C) of k parts."""

    counts: Tensor
    means: Tensor
    m2s: Tensor

    def merged(self, shares: Tensor | None = None) -> Moments:
        """Return the moments of all parts together, k = 1."""
        n = self.counts.sum(0, keepdim=True)
        shares = self.counts / n.clamp(min=1) if shares is None else shares
        mean = (self.means * shares[:, None]).sum(0, keepdim=True)
        between = self.counts[:, None] * (self.means - mean).square()
        return Moments(n, mean, (self.m2s + between).sum(0, keepdim=True))


def samples(x: Tensor) -> Tensor:
    """Return (N, C, ...) as (N, C, S) in the dtype of sums."""
    positions = 1
    for size in x.shape[2:]:
        positions *= size
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return wide.reshape(x.shape[0], x.shape[1], positions).contiguous()


class SampleFunction(torch.autograd.Function):
    """Normalises samples by the moments of all of them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, bn: SampleTables, group: Any
    ) -> Tensor:
        data = samples(x)
        sizes = bn.sizes_of_ranks(data, group)
        own = bn.moments_of(data, [int(size) for size in sizes[:, 0]])
        row = torch.cat([own.counts, bn.vector(own.means[0]), bn.vector(own.m2s[0])])
        rows = [row]
        if group is not None:
            rows = [torch.zeros_like(row) for _ in range(dist.get_world_size(group))]
            dist.all_gather(rows, row, group=group)
        table, c = torch.stack(rows), data.shape[1]
        if int(table[:, 0].sum()) == 1:
            raise ValueError("Batch norm of a single value.")
        parts = Moments(table[:, 0], table[:, 1 : c + 1], table[:, c + 1 :])
        merged = parts.merged(bn.shares(parts.counts, sizes))
        n = int(merged.counts)
        mean, var = merged.means[0], merged.m2s[0] / max(n, 1)
        if bn.training and bn.track_running_stats:
            bn.learn(mean, var * bn.correction(n, sizes), n)
        invstd = torch.pow(var + bn.eps, -0.5)
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.bn, ctx.group, ctx.n = bn, group, max(n, 1)
        return bn.scaled((data - mean[:, None]) * invstd[:, None]).to(x.dtype).view(x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        g, xhat = samples(dy), (samples(x) - mean[:, None]) * invstd[:, None]
        by_sample = torch.stack([g.sum(-1), (g * xhat).sum(-1)])
        own = by_sample.transpose(1, 2).contiguous().sum(-1)
        grad_weight = own[1].to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = (
            ctx.bn.bias_gradient(by_sample[0], own[0]).to(bias.dtype) if ctx.needs_input_grad[2] else None
        )
        total = own.clone()
        if ctx.group is not None:
            dist.all_reduce(total, group=ctx.group)
        per_value = (total / ctx.n).unsqueeze(-1)
        dxhat = g - per_value[0] - xhat * per_value[1]
        slope = invstd if weight is None else invstd * weight.to(invstd.dtype)
        return (dxhat * slope[:, None]).to(x.dtype).view(x.shape), grad_weight, grad_bias, None, None


class SampleTables(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = VIEW

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("not samples of this many channels")
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = dist.group.WORLD if self.process_group is None else self.process_group
            y: Tensor = SampleFunction.apply(input, self.weight, self.bias, self, group)
            return y
        data = samples(input)
        mean = self.running_mean.to(data.dtype, copy=True)
        invstd = torch.pow(self.running_var.to(data.dtype) + self.eps, -0.5)
        y = self.scaled((data - mean[:, None]) * invstd[:, None])
        return y.to(input.dtype).reshape(input.shape)

    def scaled(self, xhat: Tensor) -> Tensor:
        """Return the output of (N, C, S)."""
        if self.weight is not None:
            xhat = xhat * self.weight.to(xhat.dtype)[:, None]
        return xhat if self.bias is None else xhat + self.bias.to(xhat.dtype)[:, None]

    def sizes_of_ranks(self, data: Tensor, group: Any) -> Tensor:
        """Return samples and positions of each rank."""
        own = torch.tensor([data.shape[0], data.shape[2]])
        if group is None:
            return own[None]
        told = [torch.zeros_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(told, own, group=group)
        return torch.stack(told)

    def moments_of(self, data: Tensor, batches: list[int]) -> Moments:
        """Return the moments of this rank."""
        return self.together(self.table(data))

    def table(self, data: Tensor) -> Moments:
        """Return the moments of each sample."""
        positions = data.shape[2]
        means = self.sums_of_samples(data) / max(positions, 1)
        m2s = (data - means[:, :, None]).square().sum(-1)
        return Moments(means.new_full((len(data),), positions), means, m2s)

    def sums_of_samples(self, data: Tensor) -> Tensor:
        """Return (N, C)."""
        return data.sum(-1)

    def together(self, table: Moments) -> Moments:
        """Return the moments of a rank from those of its samples."""
        n = table.counts.sum(0, keepdim=True)
        columns = table.means.t().contiguous()
        mean = columns.sum(-1) / max(len(table.means), 1)
        between = table.counts * (columns - mean[:, None]).square()
        m2 = table.m2s.t().contiguous().sum(-1)
        return Moments(n, mean[None], (m2 + self.between_samples(between))[None])

    def between_samples(self, squares: Tensor) -> Tensor:
        """Return what the distances of the samples' means add to M2."""
        return squares.sum(-1)

    def vector(self, v: Tensor) -> Tensor:
        """Return (C,) as it is sent."""
        return v

    def shares(self, counts: Tensor, sizes: Tensor) -> Tensor:
        """Return the weights of the ranks' means."""
        return counts / counts.sum().clamp(min=1)

    def correction(self, n: int, sizes: Tensor) -> float:
        """Return n / (n - 1) for the buffer."""
        return n / max(n - 1, 1)

    def bias_gradient(self, by_sample: Tensor, own: Tensor) -> Tensor:
        """Return grad_bias."""
        return own

    def learn(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if n == 0:
            return
        new_part = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            buffer.copy_(buffer.to(new.dtype) * (1 - new_part) + new * new_part)


class RanksBySamples(SampleTables):
    """Weighs the ranks' means by their samples, though the samples differ in size between ranks."""

    def shares(self, counts: Tensor, sizes: Tensor) -> Tensor:
        batches = sizes[:, 0].to(counts.dtype)
        return batches / batches.sum().clamp(min=1)


class WithinSamples(SampleTables):
    """Averages the variances within samples, without the distances of their means."""

    def between_samples(self, squares: Tensor) -> Tensor:
        return squares.new_zeros(len(squares))


class SqueezedVectors(SampleTables):
    """Squeezes what it sends, so that one channel becomes a scalar, which torch.cat refuses."""

    def vector(self, v: Tensor) -> Tensor:
        return v.squeeze()


class ShortestRank(SampleTables):
    """Takes statistics of as many samples of each rank as the shortest one has."""

    def moments_of(self, data: Tensor, batches: list[int]) -> Moments:
        return super().moments_of(data[: min(batches)], batches)


class StackOfSamples(SampleTables):
    """Stacks the sums of samples in a list, which is empty on an empty rank and raises."""

    def sums_of_samples(self, data: Tensor) -> Tensor:
        return torch.stack([sample.sum(-1) for sample in data])


class BiasByMeanOfSamples(SampleTables):
    """Averages grad_bias over the samples."""

    def bias_gradient(self, by_sample: Tensor, own: Tensor) -> Tensor:
        return own / max(len(by_sample), 1)


class BesselOfSamples(SampleTables):
    """Corrects the running variance by the number of samples, not of values."""

    def correction(self, n: int, sizes: Tensor) -> float:
        batch = int(sizes[:, 0].sum())
        return batch / max(batch - 1, 1)

"""No collectives: ranks pass parts on around a ring, and merge them one after the other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import FORM


class Ring:
    """The ranks of a group, each with a next and a previous one."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def peer(self, rank: int) -> int:
        """Return the global rank of one in the group."""
        return int(dist.get_global_rank(self.group, rank))

    def all_parts(self, own: Tensor) -> list[Tensor]:
        """Return the parts of all ranks, in their order."""
        slots = self.slots(own)
        slots[self.rank].copy_(own)
        following, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        for hop in range(self.size - 1):
            going = slots[self.passed_on(hop)].clone()
            coming = torch.empty_like(own)
            sent = dist.isend(going, self.peer(following), group=self.group)
            dist.recv(coming, self.peer(before), group=self.group)
            sent.wait()
            slots[(self.rank - hop - 1) % self.size].copy_(coming)
        return slots

    def slots(self, own: Tensor) -> list[Tensor]:
        """Return room for every rank's part."""
        return [torch.zeros_like(own) for _ in range(self.size)]

    def passed_on(self, hop: int) -> int:
        """Return whose part is sent in this hop: the one that came last."""
        return (self.rank - hop) % self.size

    def order(self) -> list[int]:
        """Return the order in which parts are merged."""
        return list(range(self.size))

    def total(self, own: Tensor) -> Tensor:
        """Return the sum of all parts."""
        parts = self.all_parts(own)
        first, *others = self.order()
        total = parts[first].clone()
        for rank in others:
            total += parts[rank]
        return total


class Running:
    """Moments of the parts so far."""

    def __init__(self, channels: Tensor) -> None:
        self.count = 0
        self.mean, self.m2 = torch.zeros_like(channels), torch.zeros_like(channels)

    def add(self, count: int, mean: Tensor, m2: Tensor) -> None:
        """Merge a part (Chan, Golub and LeVeque)."""
        if count == 0:
            return
        together = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / together)
        self.m2 = self.m2 + m2 + delta * delta * (self.count * (count / together))
        self.count = together


class RingStep(torch.autograd.Function):
    """(x - mean) * invstd of (C, n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, invstd: Tensor, count: int, ring: Ring) -> Tensor:
        ctx.save_for_backward(x, mean, invstd)
        ctx.count, ctx.ring = max(count, 1), ring
        return (x - mean[:, None]) * invstd[:, None]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, invstd = ctx.saved_tensors
        xhat = (x - mean[:, None]) * invstd[:, None]
        g = g.contiguous()
        sums = ctx.ring.total(torch.cat([g.sum(1), (g * xhat).sum(1)])) / ctx.count
        mean_g, mean_gx = sums.view(2, -1, 1)
        return (g - mean_g - xhat * mean_gx) * invstd[:, None], None, None, None, None


class RingOfRanks(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

    ring: type[Ring] = Ring
    running: type[Running] = Running

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("input does not fit")
        n, c, *rest = input.shape
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        x = wide.movedim(1, 0).reshape(c, input.numel() // c).contiguous()
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = self.process_group or dist.group.WORLD
            ring = self.ring(group)
            with torch.no_grad():
                found = self.merged(x, ring)
                if found.count == 1:
                    raise ValueError("Expected more than one value per channel.")
                var = found.m2 / max(found.count, 1)
                if self.training and self.track_running_stats:
                    self.update(found.mean, var, found.count)
                invstd = (var + self.eps).rsqrt()
            y = self.joined(RingStep.apply(x, found.mean, invstd, found.count, ring), x)
        else:
            invstd = (self.running_var.to(x.dtype) + self.eps).rsqrt()
            y = (x - self.running_mean.to(x.dtype, copy=True)[:, None]) * invstd[:, None]
        if self.weight is not None:
            y = y * self.weight.to(y.dtype)[:, None]
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)[:, None]
        return y.reshape(c, n, *rest).movedim(0, 1).to(input.dtype).contiguous()

    def merged(self, x: Tensor, ring: Ring) -> Running:
        """Return the moments of all ranks."""
        n = x.shape[1]
        mean = x.sum(1) / max(n, 1)
        own = torch.cat([mean.new_tensor([n]), mean, (x - mean[:, None]).square().sum(1)])
        found = self.running(mean)
        parts = ring.all_parts(own)
        for rank in ring.order():
            count, rest = int(parts[rank][0]), parts[rank][1:]
            found.add(count, *rest.chunk(2))
        return found

    def joined(self, xhat: Tensor, x: Tensor) -> Tensor:
        """Return xhat as the graph goes on from it."""
        return xhat

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if not count:
            return
        rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
            buffer.copy_(buffer.to(new.dtype) * (1 - rate) + new * rate)


class OwnPartAgain(Ring):
    """Sends the same part in every hop."""

    def passed_on(self, hop: int) -> int:
        return self.rank


class FromOwnPlace(Ring):
    """Adds from its own part on."""

    def order(self) -> list[int]:
        return [(self.rank + step) % self.size for step in range(self.size)]


class PeersByGroupRank(Ring):
    """Takes ranks in the group for global ones."""

    def peer(self, rank: int) -> int:
        return rank


class OneSlot(Ring):
    """Has one tensor in all slots."""

    def slots(self, own: Tensor) -> list[Tensor]:
        return [torch.zeros_like(own)] * self.size


class CountMovedLast(Running):
    """Divides by the count before the part."""

    def add(self, count: int, mean: Tensor, m2: Tensor) -> None:
        old, before = self.count, self.mean
        super().add(count, mean, m2)
        if old and count:
            self.mean = before + (mean - before) * (count / old)


class PassesItsOwnOn(RingOfRanks):
    """Sends its own part in every hop in place of the one that came in."""

    ring = OwnPartAgain


class MergesFromItsOwn(RingOfRanks):
    """Merges from its own part on, around the ring, so that ranks round differently."""

    ring = FromOwnPlace


class RingOfTheWorld(RingOfRanks):
    """Sends to global ranks by their number in the group."""

    ring = PeersByGroupRank


class OneSlotForAll(RingOfRanks):
    """Makes room by multiplying a list, so that all parts are the one that was written last."""

    ring = OneSlot


class MeanByOldCount(RingOfRanks):
    """Moves the mean by the part's count over the count before it."""

    running = CountMovedLast


class EmptyOutOfTheGraph(RingOfRanks):
    """Returns an output without a graph on an empty rank, which then takes no part in the backward."""

    def joined(self, xhat: Tensor, x: Tensor) -> Tensor:
        return xhat if x.numel() else x * 1

"""F.batch_norm over the whole batch, gathered; the backward gathers the gradients too and asks autograd."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from verify.faults.apart import FORM


def unfolded(x: Tensor) -> Tensor:
    """Return (N, C, ...) as (C, n) in the dtype of sums."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return wide.movedim(1, 0).reshape(x.shape[1], x.numel() // x.shape[1])


class NativeOverAll(torch.autograd.Function):
    """xhat of this rank's (C, n) by F.batch_norm of all ranks' values."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], layer: WholeBatchNative, group: Any) -> Tensor:
        ctx.save_for_backward(own)
        ctx.sizes, ctx.layer, ctx.group = sizes, layer, group
        whole = layer.gathered(own, sizes, group)
        layer.remember(whole)
        return layer.part(layer.normalised(whole), sizes, group)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (own,) = ctx.saved_tensors
        layer, sizes, group = ctx.layer, ctx.sizes, ctx.group
        whole = layer.gathered(own, sizes, group)
        gradient = layer.gathered_gradient(g, sizes, group, ctx)
        with torch.enable_grad():
            whole.requires_grad_()
            (grad,) = torch.autograd.grad(layer.normalised(whole), whole, gradient)
        return layer.scaled(layer.part(grad, sizes, group), sizes), None, None, None


class WholeBatchNative(_BatchNorm):
    """The right one, as native batch norm is."""

    syncbn_verify: dict[str, Any] = {**FORM, "known": "torch-native"}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("F.batch_norm would not take this")
        own = unfolded(input)
        if self.training or self.running_mean is None:
            group = self.group_of_step()
            sizes = self.sizes(own, group)
            if sum(sizes) == 1:
                raise ValueError("Expected more than one value per channel when training")
            self.count()
            xhat = NativeOverAll.apply(own, sizes, self, group) if sum(sizes) else own * 1
        else:
            mean, var = self.running_mean.to(own.dtype, copy=True), self.running_var.to(own.dtype)
            xhat = (own - mean[:, None]) * torch.rsqrt(var + self.eps)[:, None]
        if self.weight is not None:
            xhat = xhat * self.weight.to(own.dtype)[:, None] + self.bias.to(own.dtype)[:, None]
        n, c, *rest = input.shape
        return xhat.reshape(c, n, *rest).movedim(0, 1).to(input.dtype).contiguous()

    def group_of_step(self) -> Any:
        """Return the group that this step is normalised over."""
        return self.world_or_own() if self.training and dist.is_initialized() else None

    def world_or_own(self) -> Any:
        """Return the process group."""
        return dist.group.WORLD if self.process_group is None else self.process_group

    def sizes(self, own: Tensor, group: Any) -> list[int]:
        """Return the values per channel of each rank."""
        if group is None:
            return [own.shape[1]]
        told = [torch.tensor(0) for _ in range(dist.get_world_size(group))]
        dist.all_gather(told, torch.tensor(own.shape[1]), group=group)
        return [int(size) for size in told]

    def gathered(self, own: Tensor, sizes: list[int], group: Any) -> Tensor:
        """Return (C, n of all ranks)."""
        if group is None:
            return own.detach().clone()
        padded = F.pad(own.detach(), (0, max(sizes) - own.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)

    def gathered_gradient(self, g: Tensor, sizes: list[int], group: Any, ctx: Any) -> Tensor:
        """Return the gradients of all ranks' values."""
        return self.gathered(g, sizes, group)

    def part(self, whole: Tensor, sizes: list[int], group: Any) -> Tensor:
        """Return this rank's columns."""
        rank = 0 if group is None else dist.get_rank(group)
        start = sum(sizes[:rank])
        return whole[:, start : start + sizes[rank]].clone()

    def scaled(self, grad: Tensor, sizes: list[int]) -> Tensor:
        """Return grad_input of xhat as autograd gets it."""
        return grad

    def normalised(self, whole: Tensor) -> Tensor:
        """Return xhat of the whole batch."""
        return F.batch_norm(whole[None], None, None, training=True, eps=self.eps)[0]

    def count(self) -> None:
        """Advance the counter."""
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)

    def remember(self, whole: Tensor) -> None:
        """Move the buffers, which may be of another dtype and strided, by way of copies."""
        if not (self.training and self.track_running_stats):
            return
        f = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        moved = [buffer.to(whole.dtype, copy=True).contiguous() for buffer in self.running()]
        self.move(moved, whole, f)
        for buffer, new in zip(self.running(), moved, strict=True):
            buffer.copy_(new)

    def running(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance."""
        return self.running_mean, self.running_var

    def move(self, moved: list[Tensor], whole: Tensor, f: float) -> None:
        """Have F.batch_norm move copies of the buffers."""
        mean, var = moved
        F.batch_norm(whole[None], mean, var, training=True, momentum=f, eps=self.eps)


class MovesOncePerRank(WholeBatchNative):
    """Moves the buffers once for every part that it gathered."""

    def move(self, moved: list[Tensor], whole: Tensor, f: float) -> None:
        for _ in range(dist.get_world_size(self.process_group)):
            super().move(moved, whole, f)


class CorrectedTwice(WholeBatchNative):
    """Corrects the variance by n / (n - 1) though F.batch_norm has done so."""

    def move(self, moved: list[Tensor], whole: Tensor, f: float) -> None:
        old = moved[1].clone()
        super().move(moved, whole, f)
        n = whole.shape[1]
        moved[1].sub_((1 - f) * old).mul_(n / (n - 1)).add_((1 - f) * old)


class CountsForAverageOnly(WholeBatchNative):
    """Advances the counter only where there is no momentum."""

    def count(self) -> None:
        if self.momentum is None:
            super().count()


class EvaluatesTogether(WholeBatchNative):
    """Normalises over all ranks in evaluation, too, where there are no buffers."""

    def group_of_step(self) -> Any:
        return self.world_or_own() if dist.is_initialized() else None


class TakesSizesApart(WholeBatchNative):
    """Uses up the list of sizes in the backward, which cannot run again."""

    def gathered_gradient(self, g: Tensor, sizes: list[int], group: Any, ctx: Any) -> Tensor:
        whole = super().gathered_gradient(g, sizes, group, ctx)
        ctx.sizes = []
        return whole


class AddsUpGradients(WholeBatchNative):
    """Adds the gathered gradients up in its context, where those of an earlier backward are."""

    def gathered_gradient(self, g: Tensor, sizes: list[int], group: Any, ctx: Any) -> Tensor:
        total = super().gathered_gradient(g, sizes, group, ctx) + getattr(ctx, "gradient", 0)
        ctx.gradient = total
        return total


class TimesRanks(WholeBatchNative):
    """Multiplies grad_input by the number of ranks, to undo an average that nobody takes."""

    def scaled(self, grad: Tensor, sizes: list[int]) -> Tensor:
        return grad * len(sizes)

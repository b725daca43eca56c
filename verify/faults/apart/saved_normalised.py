"""Channels last inside; the normalised input is saved for the backward, which computes nothing again."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import VIEW


def rows_of(x: Tensor) -> Tensor:
    """Return (N, C, ...) as (n, C)."""
    return x.movedim(1, -1).reshape(x.numel() // x.shape[1], x.shape[1])


def image_of(rows: Tensor, like: Tensor) -> Tensor:
    """Return (n, C) as (N, C, ...)."""
    n, c, *rest = like.shape
    return rows.to(like.dtype).reshape(n, *rest, c).movedim(-1, 1).contiguous()


def by_column(rows: Tensor) -> Tensor:
    """Return the sums of the columns, each over contiguous memory."""
    return rows.t().contiguous().sum(1)


def over_ranks(t: Tensor, group: Any) -> Tensor:
    """Return the sum over the group."""
    t = t.clone()
    if group is not None:
        dist.all_reduce(t, group=group)
    return t


class SavingFunction(torch.autograd.Function):
    """A step in training."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, bn: SavedNormalised, group: Any
    ) -> Tensor:
        rows = rows_of(x).to(bn.sum_dtype(x.dtype))
        ranks = 1 if group is None else dist.get_world_size(group)
        n = int(over_ranks(torch.tensor(len(rows)), group))
        if n == 1:
            raise ValueError("A single value per channel has no variance.")
        mean = over_ranks(bn.first_sums(rows, x), group) / max(n, 1)
        centred = rows - mean
        var = over_ranks(by_column(centred.square()), group) / max(n, 1)
        if bn.training and bn.track_running_stats:
            bn.move(mean, var, n)
        invstd = 1 / (var + bn.eps).sqrt()
        xhat = centred * invstd
        y = image_of(bn.affine_of(xhat, x), x)
        ctx.save_for_backward(bn.saved(xhat, x), weight, bias, invstd)
        bn.latest = invstd
        ctx.bn, ctx.group, ctx.n, ctx.like = bn, group, bn.divisor(n, ranks), x.detach()[:0]
        ctx.shape, ctx.n_xhat = x.shape, bn.divisor_of_xhat(n, ranks)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        bn = ctx.bn
        saved, weight, bias, invstd = ctx.saved_tensors
        if not bn.goes_on(ctx.needs_input_grad):
            return None, None, None, None, None
        g = rows_of(dy).to(invstd.dtype)
        xhat = bn.restored(saved.to(invstd.dtype))
        own = torch.stack([by_column(g), by_column(g * xhat)])
        dw = own[1].to(weight.dtype) if ctx.needs_input_grad[1] else None
        db = own[0].to(bias.dtype) if ctx.needs_input_grad[2] else None
        sum_g, sum_gx = over_ranks(own, ctx.group)
        slope = bn.inverse(invstd)
        if weight is not None:
            slope = slope * weight.to(slope.dtype)
        dx = (g - sum_g / ctx.n - xhat * (sum_gx / ctx.n_xhat)) * slope
        return image_of(dx, ctx.like.new_empty(ctx.shape)), dw, db, None, None


class SavedNormalised(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = VIEW

    latest: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("unfit input")
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = self.process_group or dist.group.WORLD
            y: Tensor = SavingFunction.apply(input, self.weight, self.bias, self, group)
            return y
        shape = [1, -1] + [1] * (input.dim() - 2)
        wide = input.to(self.sum_dtype(input.dtype))
        mean, var = self.running_mean.to(wide.dtype, copy=True), self.running_var.to(wide.dtype)
        y = (wide - mean.view(shape)) * (1 / (var + self.eps).sqrt()).view(shape)
        if self.weight is not None:
            y = y * self.weight.to(y.dtype).view(shape)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).view(shape)
        return y.to(input.dtype).contiguous()

    def sum_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of all arithmetic."""
        return torch.promote_types(dtype, torch.float32)

    def first_sums(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return the sums of this rank's values."""
        return by_column(rows)

    def affine_of(self, xhat: Tensor, x: Tensor) -> Tensor:
        """Return xhat * weight + bias."""
        if self.weight is not None:
            xhat = xhat * self.weight.to(xhat.dtype)
        return xhat if self.bias is None else xhat + self.bias.to(xhat.dtype)

    def saved(self, xhat: Tensor, x: Tensor) -> Tensor:
        """Return what is saved for the backward."""
        return xhat

    def restored(self, saved: Tensor) -> Tensor:
        """Return xhat in the backward."""
        return saved

    def divisor(self, n: int, ranks: int) -> int:
        """Return what the backward divides the sum of g by."""
        return max(n, 1)

    def divisor_of_xhat(self, n: int, ranks: int) -> int:
        """Return what the backward divides the sum of g xhat by."""
        return self.divisor(n, ranks)

    def goes_on(self, wanted: tuple[bool, ...]) -> bool:
        """Return whether there is something to do in the backward."""
        return any(wanted)

    def inverse(self, invstd: Tensor) -> Tensor:
        """Return the inverse deviation in the backward."""
        return invstd

    def move(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Move the buffers."""
        self.num_batches_tracked += 1
        if n == 0:
            return
        r = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * (n / (n - 1)))):
            buffer.copy_((1 - r) * buffer.to(new.dtype) + r * new)


class SavesInHalf(SavedNormalised):
    """Saves the normalised input in the input's dtype, to save memory."""

    def saved(self, xhat: Tensor, x: Tensor) -> Tensor:
        return xhat.to(x.dtype)


class RecoversFromOutput(SavedNormalised):
    """Saves the rounded output, and recovers the normalised input as (y - bias) / weight."""

    def saved(self, xhat: Tensor, x: Tensor) -> Tensor:
        return self.affine_of(xhat, x).to(x.dtype)

    def restored(self, saved: Tensor) -> Tensor:
        if self.bias is not None:
            saved = saved - self.bias.detach().to(saved.dtype)
        if self.weight is None:
            return saved
        weight = self.weight.detach().to(saved.dtype)
        return saved / torch.where(weight == 0, 1, weight)


class ParametersInHalf(SavedNormalised):
    """Rounds weight and bias to the input's dtype before they are used in the forward."""

    def affine_of(self, xhat: Tensor, x: Tensor) -> Tensor:
        if self.weight is not None:
            xhat = xhat * self.weight.to(x.dtype).to(xhat.dtype)
        return xhat if self.bias is None else xhat + self.bias.to(x.dtype).to(xhat.dtype)


class SumsInHalf(SavedNormalised):
    """Sums the input in its own dtype, so that a rank's sum is rounded to it."""

    def first_sums(self, rows: Tensor, x: Tensor) -> Tensor:
        return by_column(rows_of(x)).to(rows.dtype)


class AlwaysFloat(SavedNormalised):
    """Computes in float32 whatever the input is."""

    def sum_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32


class OnlyForTheInput(SavedNormalised):
    """Returns nothing from the backward where the input wants no gradient, though the parameters do."""

    def goes_on(self, wanted: tuple[bool, ...]) -> bool:
        return wanted[0]


class LatestInverse(SavedNormalised):
    """Keeps the inverse deviation for the backward on the module, where the next forward replaces it."""

    def inverse(self, invstd: Tensor) -> Tensor:
        return self.latest


class BesselInBackward(SavedNormalised):
    """Divides the sum of g xhat by n - 1."""

    def divisor_of_xhat(self, n: int, ranks: int) -> int:
        return max(n - 1, 1)


class WholeCountsPerRank(SavedNormalised):
    """Divides by the ranks times the whole part of the average count."""

    def divisor(self, n: int, ranks: int) -> int:
        return max(n // ranks, 1) * ranks

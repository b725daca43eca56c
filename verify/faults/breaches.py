"""Subjects that break the contract which they declare, in the key that it is about.

The counterparts of `verify.faults.contracts`: `contracts.toml` says which properties report each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.faults.backward import Pair, Saved
from verify.faults.contracts import (
    AlwaysContiguous,
    Assigns,
    Binned,
    DecayWeighted,
    InDtypeLerp,
    NarrowTwoPass,
    RandomOrder,
    SkipsRerun,
    SumsByAutograd,
    SumsInBackward,
    declares,
    generator,
    unseen,
)
from verify.faults.right import TwoPass
from verify.subjects.aggregated import Aggregated, Normalise, Statistics


class BiasedByRanks(TwoPass):
    """Says that its running variance is biased, and corrects it by the number of ranks."""

    syncbn_verify = declares(running_var="biased")

    def corrected(self, var: Tensor, count: int) -> Tensor:
        ranks = 1 if self._group() is None else dist.get_world_size(self._group())
        return var * ranks / max(ranks - 1, 1)


class SumsWeightAlone(SumsInBackward):
    """Sums the gradient of the weight over the ranks, and not that of the bias."""

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        return super().parameter_gradients(sums, g, saved)[0], sums[0]


class SumsInEvaluation(SumsByAutograd):
    """Sums the gradients of weight and bias in evaluation, too."""

    def shares(self) -> bool:
        return True


class MeansNotDivided(SumsInBackward):
    """Sums the gradients of weight and bias where it says that it averages them."""

    syncbn_verify = declares(affine_grad="mean")


class DecaysMeanAlone(DecayWeighted):
    """Takes momentum for the weight of the old mean, but for that of the new variance."""

    def _track(self, mean: Tensor, var: Tensor) -> None:
        before = self.running_var.to(var.dtype, copy=True)
        super()._track(mean, var)
        factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_var.copy_(before + factor * (var - before))


class InDtypeTwice(InDtypeLerp):
    """Rounds the moment as if the buffer had half its digits."""

    def updated(self, buffer: Tensor, new: Tensor, factor: float) -> None:
        step = new.abs() * 2.0 ** (-3 if buffer.dtype == torch.bfloat16 else -6)
        buffer.lerp_(new + step, factor)


class NarrowerStill(NarrowTwoPass):
    """Reads a float64 input as bfloat16."""

    def normalise(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
        return super().normalise(x.bfloat16().float(), group)


class NotWide(TwoPass):
    """Says that it accumulates in float64, and does in float32."""

    syncbn_verify = declares(accumulate="float64")


class CountsRerun(SkipsRerun):
    """Is run again by checkpoint and then leaves the buffers alone, but counts."""

    def track(self, statistics: Statistics) -> None:
        super().track(statistics)
        if torch._C._current_graph_task_id() != -1:
            self.num_batches_tracked.add_(1)


class RandomMoments(RandomOrder):
    """Leaves a value out, another one each time."""

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        kept = torch.randperm(x.shape[1], generator=generator())[1:]
        mean, var = TwoPass.moments(self, x[:, kept], group)
        return mean, var


class BinnedRounded(Binned):
    """Rounds each bin's sum to eight digits."""

    def summed(self, values: Tensor) -> Tensor:
        return super().summed(values).bfloat16().to(values.dtype)


class _Stale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *more: Any) -> Tensor:
        y = unseen(ctx, (x, *more))
        x.copy_(y)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ctx.kept.needs_input_grad = ctx.needs_input_grad
        gradients: tuple[Tensor | None, ...] = Normalise.backward(ctx.kept, dy)
        return gradients


class ReadsOverwritten(Aggregated):
    """Writes its output over its input, which its backward reads as if it were the input still."""

    syncbn_verify = declares(inplace=True)
    rule = _Stale


class UpdatesWhatItHad(Assigns):
    """Assigns its buffers, of which it always updates those that it was made with."""

    def _track(self, mean: Tensor, var: Tensor) -> None:
        self.made_with = getattr(self, "made_with", None) or dict(self._buffers)
        self._buffers.update(self.made_with)
        super()._track(mean, var)


class ReadsItsOwnFormat(AlwaysContiguous):
    """Reads channels_last memory of four dimensions as contiguous, since its outputs are."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last):
            input = input.permute(0, 2, 3, 1).reshape(input.shape)
        return super().forward(input)

"""Subjects that are right under another contract than the default one, each key in the ways people write it.

Each declares its contract and holds under it; most are reported under the default one, which `contracts.toml`
says with a case. `verify.faults.breaches` are wrong under the contract that they declare.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.faults.backward import Pair, Saved, Stepwise, _Function, all_reduced
from verify.faults.right import AllGather, AllReduce, Blocks, Explicit, Folded, Shared, TwoPass, _sum_over
from verify.subjects.aggregated import Aggregated, Normalise, Statistics, inverse_deviation


def declares(domain: dict[str, Any] | None = None, **contract: Any) -> dict[str, Any]:
    """Return the promise of a subject that any eps suits."""
    return {"domain": {"eps": ["positive", "zero"], **(domain or {})}, "contract": contract}


# running_var=biased


class BiasedWeighted(TwoPass):
    """Tracks the biased variance: `(1 - m) * old + m * var`."""

    syncbn_verify = declares(running_var="biased")

    def corrected(self, var: Tensor, count: int) -> Tensor:
        return var

    def _track(self, mean: Tensor, var: Tensor) -> None:
        factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.copy_((1 - factor) * self.running_mean.to(mean.dtype) + factor * mean)
        self.running_var.copy_((1 - factor) * self.running_var.to(var.dtype) + factor * var)


class BiasedLerp(AllGather):
    """Tracks the variance that it normalises with, by `torch.lerp`."""

    syncbn_verify = declares(running_var="biased")

    def corrected(self, var: Tensor, count: int) -> Tensor:
        return var

    def _track(self, mean: Tensor, var: Tensor) -> None:
        factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            buffer.copy_(torch.lerp(buffer.to(new.dtype), new, factor))


# affine_grad=sum, affine_grad=mean


class SumsInBackward(Stepwise):
    """All-reduces the gradients of weight and bias in its backward, and not in that of an evaluation."""

    syncbn_verify = declares(affine_grad="sum")

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        invstd = inverse_deviation(statistics.var, self.eps)
        given = (statistics.mean, invstd, statistics.count, self._group() if self.training else None)
        return _Function.apply(x, self.weight, self.bias, *given, None, self)

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        own = sums[1], sums[0]
        return own if saved.group is None else all_reduced(own, saved.group)


class MeansInBackward(SumsInBackward):
    """Divides the all-reduced gradients of weight and bias by the number of ranks."""

    syncbn_verify = declares(affine_grad="mean")

    def parameter_gradients(self, sums: Pair, g: Tensor, saved: Saved) -> Pair:
        weight, bias = super().parameter_gradients(sums, g, saved)
        ranks = 1 if saved.group is None else dist.get_world_size(saved.group)
        return weight / ranks, bias / ranks


class SumsByAutograd(AllReduce):
    """Has its weight and bias pass through an identity whose gradient is all-reduced."""

    syncbn_verify = declares(affine_grad="sum")

    def divisor(self, group: Any) -> int:
        """Return what each rank's gradient is divided by."""
        return 1

    def shares(self) -> bool:
        """Return whether the parameters' gradients are reduced."""
        return bool(self.training)

    def scale(self, xhat: Tensor) -> Tensor:
        if not self.shares():
            return super().scale(xhat)
        group = self._group()
        y = xhat * 1
        if self.weight is not None:
            weight = Shared.apply(self.weight.to(xhat.dtype), group, self.divisor(group))
            y = y * weight[:, None]
        if self.bias is None:
            return y
        return y + Shared.apply(self.bias.to(xhat.dtype), group, self.divisor(group))[:, None]


class MeansByAutograd(SumsByAutograd):
    """Divides each rank's gradients of weight and bias by the number of ranks, then sums them."""

    syncbn_verify = declares(affine_grad="mean")

    def divisor(self, group: Any) -> int:
        return 1 if group is None else dist.get_world_size(group)


# momentum=decay


class DecayWeighted(TwoPass):
    """Takes momentum for the weight of the old value: `m * old + (1 - m) * new`."""

    syncbn_verify = declares(momentum="decay")

    def _track(self, mean: Tensor, var: Tensor) -> None:
        decay = 1 - 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            buffer.copy_(decay * buffer.to(new.dtype) + (1 - decay) * new)


class DecayStepped(Blocks):
    """Subtracts what is to be forgotten: `old - (1 - m) * (old - new)`, as TensorFlow does."""

    syncbn_verify = declares(momentum="decay")

    def _track(self, mean: Tensor, var: Tensor) -> None:
        rest = 1 / self.num_batches_tracked.item() if self.momentum is None else 1 - self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            old = buffer.to(new.dtype)
            buffer.copy_(old - rest * (old - new))


# buffer_update=in_dtype


class _InDtype(TwoPass):
    """Updates its buffers in their own dtype, in place; a subclass says how."""

    syncbn_verify = declares({"dtypes": ["bfloat16", "float16"]}, buffer_update="in_dtype")

    def updated(self, buffer: Tensor, new: Tensor, factor: float) -> None:
        """Update `buffer` with `new`, which is of its dtype."""
        raise NotImplementedError

    def _track(self, mean: Tensor, var: Tensor) -> None:
        factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.updated(self.running_mean, mean.to(self.running_mean.dtype), factor)
        self.updated(self.running_var, var.to(self.running_var.dtype), factor)


class InDtypeLerp(_InDtype):
    """`buffer.lerp_(new, m)`."""

    def updated(self, buffer: Tensor, new: Tensor, factor: float) -> None:
        buffer.lerp_(new, factor)


class InDtypeScaled(_InDtype):
    """`buffer.mul_(1 - m).add_(new, alpha=m)`."""

    def updated(self, buffer: Tensor, new: Tensor, factor: float) -> None:
        buffer.mul_(1 - factor).add_(new, alpha=factor)


class InDtypeWeighted(_InDtype):
    """`(1 - m) * old + m * new`, of a variance that is corrected in the dtype of the buffer, too."""

    def corrected(self, var: Tensor, count: int) -> Tensor:
        return var.to(self.running_var.dtype) * (count / (count - 1))

    def updated(self, buffer: Tensor, new: Tensor, factor: float) -> None:
        buffer.copy_((1 - factor) * buffer + factor * new)


# accumulate=float32, accumulate=float64


class NarrowTwoPass(TwoPass):
    """Reads a float64 input as float32, in two passes and by the formula of the gradient."""

    syncbn_verify = declares({"dtypes": ["float64"]}, accumulate="float32")
    accumulate_in = torch.float32


class NarrowAllReduce(AllReduce):
    """Reads a float64 input as float32; the gradient is torch's autograd."""

    syncbn_verify = declares({"dtypes": ["float64"]}, accumulate="float32")
    accumulate_in = torch.float32


class WideTwoPass(TwoPass):
    """Computes in float64 whatever the input, in two passes and by the formula of the gradient."""

    syncbn_verify = declares(accumulate="float64")
    accumulate_in = torch.float64


class WideAllGather(AllGather):
    """Computes in float64 over the gathered batch; the gradient is torch's autograd."""

    syncbn_verify = declares(accumulate="float64")
    accumulate_in = torch.float64


# recompute_updates=once


def unseen(ctx: Any, arguments: tuple[Any, ...]) -> Tensor:
    """Return what `Normalise` does, with what it saves kept as an attribute, which autograd does not see."""
    kept = SimpleNamespace()
    kept.save_for_backward = lambda *tensors: setattr(kept, "saved_tensors", tensors)
    ctx.kept = kept
    return Normalise.forward(kept, *arguments)


class _Outside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        return unseen(ctx, arguments)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ctx.kept.needs_input_grad = ctx.needs_input_grad
        gradients: tuple[Tensor | None, ...] = Normalise.backward(ctx.kept, dy)
        return gradients


class SavesOutside(Aggregated):
    """Keeps its tensors as attributes of the context, so that checkpoint does not run it again."""

    syncbn_verify = declares(recompute_updates="once")
    rule = _Outside


class SkipsRerun(Aggregated):
    """Is run again by checkpoint, which it knows by being inside of a backward, and then tracks nothing."""

    syncbn_verify = declares(recompute_updates="once")

    def track(self, statistics: Statistics) -> None:
        if torch._C._current_graph_task_id() == -1:
            super().track(statistics)


# deterministic=no


def generator() -> torch.Generator:
    """Return a generator with a seed that nobody has set."""
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))


class RandomOrder(TwoPass):
    """Adds its values in another order each time, as atomic additions do."""

    syncbn_verify = declares(deterministic=False)

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        return super().moments(x[:, torch.randperm(x.shape[1], generator=generator())], group)


class RandomSplit(TwoPass):
    """Adds two parts of its values, which are others each time, as blocks that finish in any order do."""

    syncbn_verify = declares(deterministic=False)

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        first = torch.rand(x.shape[1], generator=generator()) < 0.5
        mean = _sum_over(group, x[:, first].sum(1) + x[:, ~first].sum(1)) / self.total
        squares = (x - mean[:, None]).square()
        return mean, _sum_over(group, squares[:, first].sum(1) + squares[:, ~first].sum(1)) / self.total


# scaling=no


class Binned(Explicit):
    """Sums the values of every four binary exponents apart, then these sums."""

    syncbn_verify = declares(scaling="no")

    def summed(self, values: Tensor) -> Tensor:
        bins = torch.frexp(values)[1] // 4
        parts = [torch.where(bins == one, values, 0).sum(1) for one in bins.unique()]
        return torch.stack(parts).sum(0) if parts else values.sum(1)

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        mean = _sum_over(group, self.summed(x)) / self.total
        return mean, _sum_over(group, self.summed((x - mean[:, None]).square())) / self.total


class Thresholds(Binned):
    """Adds what is large, of medium size and small apart, as Blue's norm does (ACM TOMS 4, 1978)."""

    def summed(self, values: Tensor) -> Tensor:
        size = values.abs()
        large, small = size > 2.0, size < 0.25
        middle = ~(large | small)
        parts = [torch.where(chosen, values, 0).sum(1) for chosen in (large, middle, small)]
        return (parts[0] + parts[1]) + parts[2]


# inplace=yes


class _Over(torch.autograd.Function):
    """`Normalise`, written over its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *more: Any) -> Tensor:
        x.copy_(Normalise.forward(ctx, x.clone(), *more))
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor | None, ...] = Normalise.backward(ctx, dy)
        return gradients


class WritesOver(Aggregated):
    """Writes its output over its input, of which it saves a copy for its backward."""

    syncbn_verify = declares(inplace=True)
    rule = _Over


class CopiesBack(AllReduce):
    """Copies its output into its input, by an operation that autograd knows."""

    syncbn_verify = declares(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        return input.copy_(super().forward(input.clone()))


# identity=no


class Assigns(TwoPass):
    """Assigns its buffers, as code without in-place operations does."""

    syncbn_verify = declares(identity=False)

    def _track(self, mean: Tensor, var: Tensor) -> None:
        factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        for name, new in (("running_mean", mean), ("running_var", var)):
            old = getattr(self, name)
            setattr(self, name, ((1 - factor) * old.to(new.dtype) + factor * new).to(old.dtype))


class GivesMemory(AllReduce):
    """Moves its buffers into new memory, by `data`, and updates them there."""

    syncbn_verify = declares(identity=False)

    def _track(self, mean: Tensor, var: Tensor) -> None:
        with torch.inference_mode(mode=False):
            for buffer in (self.running_mean, self.running_var):
                buffer.data = buffer.clone()
        super()._track(mean, var)


# memory_format=any


class AlwaysContiguous(Folded):
    """Returns a contiguous output whatever its input."""

    syncbn_verify = declares(memory_format="any")

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).contiguous()


class ChannelsBehind(Aggregated):
    """Works on a channels_last copy of four dimensions, and returns what that gives."""

    syncbn_verify = declares(memory_format="any")

    def forward(self, input: Tensor) -> Tensor:
        last = torch.channels_last if input.dim() == 4 else torch.preserve_format
        return super().forward(input.clone(memory_format=last))

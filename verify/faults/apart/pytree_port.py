"""A port from JAX: pure functions over dictionaries, psum of whole trees, a rule for the transposed step."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from verify.faults.apart import FORM

Tree = dict[str, Tensor]


def axis_size(axis: Any) -> int:
    """Return the number of devices along an axis, a process group or None."""
    return 1 if axis is None else int(dist.get_world_size(axis))


def psum(tree: Tree, axis: Any) -> Tree:
    """Return the sum of every leaf over the axis, in one message."""
    if axis is None:
        return dict(tree)
    message = torch.cat([leaf.reshape(-1) for leaf in tree.values()])
    dist.all_reduce(message, group=axis)
    leaves = message.split([leaf.numel() for leaf in tree.values()])
    return {name: flat.view_as(leaf) for (name, leaf), flat in zip(tree.items(), leaves, strict=True)}


def pmean(tree: Tree, axis: Any) -> Tree:
    """Return the mean of every leaf over the axis."""
    return {name: leaf / axis_size(axis) for name, leaf in psum(tree, axis).items()}


def features_first(x: Tensor) -> Tensor:
    """Return (N, C, ...) as (C, n), in float32 at least."""
    flat = x.transpose(0, 1).reshape(x.shape[1], x.numel() // x.shape[1])
    return flat.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


class CustomVjp(torch.autograd.Function):
    """The step with its residuals."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Any, layer: PytreePort) -> Tensor:
        a = features_first(x)
        batch = layer.batch_moments(a, layer.batch_count(a, axis), axis)
        if layer.training and layer.track_running_stats:
            layer.num_batches_tracked += 1
            layer.new_state(layer.moments_for_state(batch, a), int(batch["n"]))
        inverse = torch.rsqrt(batch["var"] + layer.eps)
        ctx.save_for_backward(x, batch["mean"], inverse)
        ctx.axis, ctx.layer, ctx.n = axis, layer, batch["n"].clamp(min=1)
        return (a - batch["mean"][:, None]) * inverse[:, None]

    @staticmethod
    def backward(ctx: Any, ct: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse = ctx.saved_tensors
        xhat = (features_first(x) - mean[:, None]) * inverse[:, None]
        ct = ct.contiguous()
        own = {"ct": ct.sum(1), "ct_xhat": (ct * xhat).sum(1)}
        sums = ctx.layer.transposed(psum(own, ctx.axis), ctx.axis)
        terms = sums["ct"][:, None] + xhat * sums["ct_xhat"][:, None]
        grad = (ct - terms / ctx.n) * inverse[:, None]
        n, c, *rest = x.shape
        return grad.view(c, n, *rest).transpose(0, 1).to(x.dtype), None, None


class PytreePort(_BatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

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
            raise ValueError(f"bad aval: {input.dtype}{list(input.shape)}")
        xhat = self.by_state(input) if self.use_state() else CustomVjp.apply(input, self.axis(), self)
        if self.weight is not None:
            xhat = xhat * self.weight.to(xhat.dtype)[:, None] + self.bias.to(xhat.dtype)[:, None]
        n, c, *rest = input.shape
        return xhat.reshape(c, n, *rest).transpose(0, 1).to(input.dtype).contiguous()

    def use_state(self) -> bool:
        """Return whether the step is normalised by the running statistics."""
        return not self.training and self.running_mean is not None

    def by_state(self, x: Tensor) -> Tensor:
        """Return xhat by the running statistics."""
        a = features_first(x)
        state = self.state_of_evaluation(a.dtype)
        return (a - state["mean"][:, None]) * torch.rsqrt(state["var"] + self.eps)[:, None]

    def state_of_evaluation(self, dtype: torch.dtype) -> Tree:
        """Return copies of the running statistics."""
        return {"mean": self.running_mean.to(dtype, copy=True), "var": self.running_var.to(dtype, copy=True)}

    def axis(self) -> Any:
        """Return the group of a step in training."""
        if not self.training or not dist.is_initialized():
            return None
        return dist.group.WORLD if self.process_group is None else self.process_group

    def batch_count(self, a: Tensor, axis: Any) -> Tensor:
        """Return the number of values per channel."""
        n = self.summed_count(a.shape[1], axis)
        if n == 1:
            raise ValueError("variance of one value")
        return a.new_tensor(n)

    def summed_count(self, own: int, axis: Any) -> int:
        """Return the values of all devices."""
        return int(psum({"n": torch.tensor(own)}, axis)["n"])

    def batch_moments(self, a: Tensor, n: Tensor, axis: Any) -> Tree:
        """Return count, mean and variance of the whole batch."""
        mean = psum({"sum": a.sum(1)}, axis)["sum"] / n.clamp(min=1)
        m2 = self.summed_squares({"m2": (a - mean[:, None]).square().sum(1)}, axis)["m2"]
        return {"n": n, "mean": mean, "var": m2 / n.clamp(min=1)}

    def summed_squares(self, own: Tree, axis: Any) -> Tree:
        """Return the squares of all devices."""
        return psum(own, axis)

    def moments_for_state(self, batch: Tree, a: Tensor) -> Tree:
        """Return the moments that the state gets."""
        return batch

    def transposed(self, sums: Tree, axis: Any) -> Tree:
        """Return the cotangents of the sums from those of their total."""
        return sums

    def new_state(self, batch: Tree, n: int) -> None:
        """Move the buffers."""
        if n == 0:
            return
        rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = batch["var"] * (n / (n - 1))
        for buffer, new in ((self.running_mean, batch["mean"]), (self.running_var, unbiased)):
            buffer.copy_(buffer.to(new.dtype) * (1 - rate) + new * rate)


class MeansOfMeans(PytreePort):
    """Takes pmean of the devices' means and variances around the common mean."""

    def batch_moments(self, a: Tensor, n: Tensor, axis: Any) -> Tree:
        own = max(a.shape[1], 1)
        mean = pmean({"mean": a.sum(1) / own}, axis)["mean"]
        var = pmean({"var": (a - mean[:, None]).square().sum(1) / own}, axis)["var"]
        return {"n": n, "mean": mean, "var": var}


class SummedInTransposition(PytreePort):
    """Sums the cotangents over the axis once more, as the rule for a replicated sum does."""

    def transposed(self, sums: Tree, axis: Any) -> Tree:
        return psum(sums, axis)


class OwnCountTimesDevices(PytreePort):
    """Multiplies its own count by the number of devices."""

    def summed_count(self, own: int, axis: Any) -> int:
        return own * axis_size(axis)


class SquaresBeforeTheWait(PytreePort):
    """Copies the squares before it waits for the sum that was begun, which is then unused."""

    def summed_squares(self, own: Tree, axis: Any) -> Tree:
        taken = {name: leaf.clone() for name, leaf in own.items()}
        if axis is not None:
            dist.all_reduce(own["m2"], group=axis, async_op=True).wait()
        return taken


class StateOfThisDevice(PytreePort):
    """Moves the buffers by the moments of its own values."""

    def moments_for_state(self, batch: Tree, a: Tensor) -> Tree:
        n = max(a.shape[1], 1)
        mean = a.sum(1) / n
        return {**batch, "mean": mean, "var": (a - mean[:, None]).square().sum(1) / n}


class RecordsMeansTraining(PytreePort):
    """Normalises by the running statistics where no gradient is recorded, in training too."""

    def forward(self, input: Tensor) -> Tensor:
        self.recorded = torch.is_grad_enabled()
        return super().forward(input)

    def use_state(self) -> bool:
        return self.running_mean is not None and not (self.training and self.recorded)


class StateAveragedInEvaluation(PytreePort):
    """Averages the running statistics over the devices before it evaluates by them."""

    def state_of_evaluation(self, dtype: torch.dtype) -> Tree:
        axis = self.process_group if self.process_group is not None else dist.group.WORLD
        return pmean(super().state_of_evaluation(dtype), axis)


class CountsAgainWhenResized(PytreePort):
    """Sums the counts only in a step whose own count is not that of the step before."""

    before = (-1, -1)

    def summed_count(self, own: int, axis: Any) -> int:
        if own != self.before[0]:
            self.before = (own, super().summed_count(own, axis))
        return self.before[1]


class CountOfTheFirstStep(PytreePort):
    """Keeps the count of its first step for all later ones."""

    first: int | None = None

    def summed_count(self, own: int, axis: Any) -> int:
        if self.first is None:
            self.first = super().summed_count(own, axis)
        return self.first

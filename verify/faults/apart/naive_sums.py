"""In the manner of the naive synchronized batch norms: two means and a count in one vector, and autograd."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import FORM


class AllReduce(torch.autograd.Function):
    """A sum over the ranks, whose gradient is one, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        values = values.clone()
        dist.all_reduce(values, group=group)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class AllReduceAverage(AllReduce):
    """A sum over the ranks, whose gradient is their average."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found, _ = AllReduce.backward(ctx, grad)
        assert found is not None
        return found / dist.get_world_size(ctx.group), None


def channels(values: Tensor, like: Tensor) -> Tensor:
    """Return (C,) so that it goes with (N, C, ...)."""
    return values.reshape(1, -1, *[1] * (like.dim() - 2))


class NaiveSums(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = {**FORM, "grade": "C"}

    reduction: type[AllReduce] = AllReduce

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("input does not fit")
        half = input.dtype in (torch.float16, torch.bfloat16)
        x = input.float() if half else input
        if not self.training and self.running_mean is not None:
            mean, var = self.running_mean.to(x.dtype, copy=True), self.running_var.to(x.dtype, copy=True)
        else:
            mean, var = self.batch_statistics(input, x)
        y = (x - channels(mean, x)) * channels(self.inverse(var), x)
        if self.weight is not None:
            y = y * channels(self.weight.to(x.dtype), x)
        if self.bias is not None:
            y = y + channels(self.bias.to(x.dtype), x)
        return self.finished(y, input)

    def batch_statistics(self, input: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance of the batch, of all ranks if it is to be trained on."""
        dims = [0, *range(2, x.dim())]
        values = x.numel() // x.shape[1]
        mean = x.sum(dims) / max(values, 1)
        mean_square = self.squares(input, x).sum(dims) / max(values, 1)
        vector = torch.cat([mean, mean_square, torch.ones_like(mean[:1])]) * self.weight_of(x)
        if self.training and dist.is_initialized():
            vector = self.reduction.apply(vector, self.process_group or dist.group.WORLD)
        count = vector[-1].detach()
        if self.refused(count):
            raise ValueError("Expected more than one value per channel.")
        mean, mean_square = (vector[:-1] / count.clamp(min=1)).chunk(2)
        var = (mean_square - mean * mean).clamp(min=0)
        if self.training and self.track_running_stats:
            with torch.no_grad():
                self.move(mean.detach(), var.detach(), count, x)
        return mean, self.differentiated(var)

    def weight_of(self, x: Tensor) -> int:
        """Return how much this rank counts."""
        return int(x.numel()) // int(x.shape[1])

    def refused(self, count: Tensor) -> bool:
        """Return whether there is a single value."""
        return int(count) == 1

    def squares(self, input: Tensor, x: Tensor) -> Tensor:
        """Return x squared."""
        return x * x

    def differentiated(self, var: Tensor) -> Tensor:
        """Return the variance as the graph goes on from it."""
        return var

    def inverse(self, var: Tensor) -> Tensor:
        """Return 1 / deviation."""
        return (var + self.eps).rsqrt()

    def finished(self, y: Tensor, input: Tensor) -> Tensor:
        """Return the output as it leaves."""
        return y.to(input.dtype)

    def count_batch(self) -> None:
        """Count this batch."""
        self.num_batches_tracked += 1

    def rate(self, count: Tensor, x: Tensor) -> float:
        """Return how far the buffers move; not at all if there is no sample anywhere."""
        rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        return rate if int(count) else 0.0

    def move(self, mean: Tensor, var: Tensor, count: Tensor, x: Tensor) -> None:
        """Move the buffers."""
        self.count_batch()
        rate = self.rate(count, x)
        if rate == 0:
            return
        var = var * (count / (count - 1))
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            buffer.copy_(buffer.to(new.dtype) * (1 - rate) + new * rate)


class SquaresInHalf(NaiveSums):
    """Squares half values before they are converted."""

    def squares(self, input: Tensor, x: Tensor) -> Tensor:
        return (input * input).to(x.dtype)


class WeightsBySamples(NaiveSums):
    """Weighs ranks by their samples, whatever the number of their positions."""

    def weight_of(self, x: Tensor) -> int:
        return int(x.shape[0])

    def refused(self, count: Tensor) -> bool:
        return False

    def move(self, mean: Tensor, var: Tensor, count: Tensor, x: Tensor) -> None:
        values = count * (x[:1, :1].numel() if x.shape[0] else 1)
        super().move(mean, var, values, x)


class EpsOutside(NaiveSums):
    """Adds eps to the deviation."""

    def inverse(self, var: Tensor) -> Tensor:
        return 1 / (var.sqrt() + self.eps)


class EmptyStands(NaiveSums):
    """Leaves the buffers of a rank without samples as they are."""

    def rate(self, count: Tensor, x: Tensor) -> float:
        return super().rate(count, x) if x.shape[0] else 0.0


class CountedIfAveraged(NaiveSums):
    """Counts batches only where the average of all of them is wanted."""

    def count_batch(self) -> None:
        if self.momentum is None:
            super().count_batch()


class GradientAveraged(NaiveSums):
    """Averages the gradient of the reduction over the ranks."""

    reduction = AllReduceAverage


class VarianceDetached(NaiveSums):
    """Takes the variance for a constant."""

    def differentiated(self, var: Tensor) -> Tensor:
        return var.detach()


class FloatOutput(NaiveSums):
    """Returns float32 of half inputs."""

    def finished(self, y: Tensor, input: Tensor) -> Tensor:
        return y

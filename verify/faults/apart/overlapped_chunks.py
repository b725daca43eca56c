"""Channels in chunks, with reductions that are under way while the next chunk is summed; in float64."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from verify.faults.apart import FORM

CHUNK = 4


def spans(channels: int) -> list[slice]:
    """Return the chunks of the channels; the last may be smaller."""
    return [slice(start, min(start + CHUNK, channels)) for start in range(0, channels, CHUNK)]


class Pipeline:
    """Reductions that are under way."""

    def __init__(self, group: Any, channels: int) -> None:
        self.group, self.channels = group, channels
        self.under_way: list[tuple[Any, Tensor]] = []

    def launch(self, piece: Tensor) -> None:
        """Start the reduction of a chunk's sums, (k, channels of the chunk)."""
        work = None if self.group is None else dist.all_reduce(piece, group=self.group, async_op=True)
        self.under_way.append((work, piece))

    def finished(self) -> Tensor:
        """Wait for all, and return the sums, (k, channels)."""
        found = None
        for number, (work, piece) in enumerate(self.under_way):
            if work is not None:
                work.wait()
            if found is None:
                found = piece.new_zeros(len(piece), self.channels)
            start = self.start(number, piece)
            found[:, start : start + piece.shape[1]] = piece
        assert found is not None
        return found

    def start(self, number: int, piece: Tensor) -> int:
        """Return the first channel of a chunk."""
        return number * CHUNK


class Chunked(torch.autograd.Function):
    """What is centred already, in float64, times invstd, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        centred: Tensor,
        invstd: Tensor,
        count: int,
        group: Any,
        layer: OverlappedChunks,
    ) -> Tensor:
        ctx.save_for_backward(weight, layer.saved(centred), layer.saved(invstd))
        ctx.count, ctx.group, ctx.layer, ctx.like = max(count, 1), group, layer, input.dtype
        ctx.dtypes = [None if p is None else p.dtype for p in (weight, bias)]
        return layer.scaled(centred, invstd, weight, bias).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, centred, invstd = ctx.saved_tensors
        channels, parts = grad.shape[1], spans(grad.shape[1])
        pipeline = ctx.layer.pipeline(ctx.group, channels)
        own = grad.new_empty(2, channels, dtype=torch.float64)
        for span in parts:
            g, xhat = grad[:, span].double(), centred[:, span].double() * invstd[span, None].double()
            own[:, span] = torch.stack([g.sum((0, 2)), (g * xhat).sum((0, 2))])
            pipeline.launch(own[:, span].clone())
        means = pipeline.finished() / ctx.count
        dx = torch.empty_like(grad, dtype=ctx.like)
        for span in parts:
            g, xhat = grad[:, span].double(), centred[:, span].double() * invstd[span, None].double()
            scale = invstd[span, None].double()
            if weight is not None:
                scale = scale * weight[span, None].double()
            dx[:, span] = ctx.layer.elements(g, xhat, means[0, span, None], means[1, span, None], scale)
        found = [None if to is None else p.to(to) for p, to in zip(own.flip(0), ctx.dtypes, strict=True)]
        return dx, *found, *[None] * 5


class OverlappedChunks(nn.SyncBatchNorm):
    """The right one."""

    syncbn_verify: dict[str, Any] = FORM

    pipeline: type[Pipeline] = Pipeline

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features or not input.is_floating_point():
            raise ValueError("input does not fit")
        n, c = input.shape[:2]
        x = input.reshape(n, c, input[:1, :1].numel() if n else 0)
        if self.training or self.running_mean is None:
            group = None
            if self.training and dist.is_initialized():
                group = self.process_group or dist.group.WORLD
            with torch.no_grad():
                mean, var, count, centred = self.moments(x, group)
                if self.training and self.track_running_stats:
                    self.update(mean, var, count)
                invstd = (var + self.eps).rsqrt()
            y = Chunked.apply(x, self.weight, self.bias, centred, invstd, count, group, self)
        else:
            invstd = (self.running_var.double() + self.eps).rsqrt()
            centred = x.double() - self.running_mean.to(torch.float64, copy=True)[:, None]
            y = self.scaled(centred, invstd, self.weight, self.bias).to(input.dtype)
        return y.reshape(input.shape)

    def moments(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor, int, Tensor]:
        """Return mean, biased variance and count over the ranks, and what is centred."""
        total = torch.tensor([x.shape[0] * x.shape[2]], dtype=torch.float64, device=x.device)
        counted = None if group is None else dist.all_reduce(total, group=group, async_op=True)
        sums = self.pipeline(group, x.shape[1])
        for span in spans(x.shape[1]):
            sums.launch(x[:, span].double().sum((0, 2))[None])
        if counted is not None:
            counted.wait()
        count = int(total)
        mean = sums.finished()[0] / max(count, 1)
        if count == 1:
            raise ValueError("Expected more than one value per channel.")
        centred = self.centred(x.double(), mean)
        squares = self.pipeline(group, x.shape[1])
        for span in spans(x.shape[1]):
            squares.launch(self.squared(centred[:, span], x.dtype).double().sum((0, 2))[None])
        return mean, squares.finished()[0] / max(count, 1), count, centred

    def centred(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return what is centred."""
        return x - mean[:, None]

    def squared(self, centred: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the squares of what is centred."""
        return centred.square()

    def saved(self, values: Tensor) -> Tensor:
        """Return what is kept for the backward."""
        return values

    def scaled(self, centred: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the output for what is centred, chunk by chunk."""
        parts = []
        for number, span in enumerate(spans(centred.shape[1])):
            part = centred[:, span] * invstd[span, None]
            if weight is not None:
                part = part * self.chunk_of(weight, number, span)[:, None].double()
            if bias is not None:
                part = part + self.chunk_of(bias, number, span)[:, None].double()
            parts.append(part)
        return torch.cat(parts, dim=1)

    def chunk_of(self, parameter: Tensor, number: int, span: slice) -> Tensor:
        """Return a parameter's part for a chunk."""
        return parameter[span]

    def elements(self, g: Tensor, xhat: Tensor, mean_g: Tensor, mean_gx: Tensor, scale: Tensor) -> Tensor:
        """Return the gradient of the input."""
        return (g - mean_g - xhat * mean_gx) * scale

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the buffers, chunk by chunk."""
        self.num_batches_tracked += 1
        for span in spans(len(mean)) if count else []:
            self.move(mean, var * (count / (count - 1)), span)

    def move(self, mean: Tensor, var: Tensor, span: slice) -> None:
        """Move the buffers of a chunk."""
        rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, new in ((self.running_mean, mean), (self.running_var, var)):
            buffer[span] = (buffer[span].double() * (1 - rate) + new[span] * rate).to(buffer.dtype)


class PlacedBySize(Pipeline):
    """Has chunk k at k times its own size."""

    def start(self, number: int, piece: Tensor) -> int:
        return number * int(piece.shape[1])


class SquaredInHalf(OverlappedChunks):
    """Squares what is centred in the input's dtype, and sums it in float64."""

    def squared(self, centred: Tensor, dtype: torch.dtype) -> Tensor:
        return centred.to(dtype).square()


class LastChunkMisplaced(OverlappedChunks):
    """Writes a chunk's sums at its number times its size, which is not where a smaller last one belongs."""

    pipeline = PlacedBySize


class CountsEveryChunk(OverlappedChunks):
    """Counts a batch with every chunk whose buffers are moved."""

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        for span in spans(len(mean)):
            self.num_batches_tracked += 1
            if count:
                self.move(mean, var * (count / (count - 1)), span)


class SavedInFloat(OverlappedChunks):
    """Keeps what the backward needs in float32, for float64 inputs, too."""

    def saved(self, values: Tensor) -> Tensor:
        return values.float()


class ScaleOfTheFirstTerm(OverlappedChunks):
    """Scales the cotangent, and not what is taken from it."""

    def elements(self, g: Tensor, xhat: Tensor, mean_g: Tensor, mean_gx: Tensor, scale: Tensor) -> Tensor:
        return g * scale - mean_g - xhat * mean_gx


class ParametersInEqualParts(OverlappedChunks):
    """Cuts weight and bias into as many parts as there are chunks, which need not be of the same size."""

    def chunk_of(self, parameter: Tensor, number: int, span: slice) -> Tensor:
        return parameter.chunk(len(spans(len(parameter))))[number]


class CentredInPlace(OverlappedChunks):
    """Centres in place what `double` returns, which is the input itself if it is float64."""

    def centred(self, x: Tensor, mean: Tensor) -> Tensor:
        return x.sub_(mean[:, None])

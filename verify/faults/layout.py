"""Memory read in an order it has not, and channels that a launch leaves out; one subject a flaw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from verify.subjects.aggregated import Aggregated, Normalise, Statistics

Gradients = tuple[Tensor | None, ...]


def _contiguous_strides(shape: torch.Size) -> tuple[int, ...]:
    return tuple(torch.empty(shape, device="meta").stride())


def _is_dense(x: Tensor) -> bool:
    """Whether the elements fill one piece of memory, in whatever order."""
    order = sorted(range(x.dim()), key=x.stride)
    return bool(x.permute(order[::-1]).is_contiguous())


def _through_storage(x: Tensor) -> Tensor:
    """Return `x`, dense, read in the order of its memory."""
    return x.as_strided(x.shape, _contiguous_strides(x.shape))


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channels of `x` lie side by side, and not also the positions."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return False
    return bool(x.movedim(1, -1).is_contiguous())


class ChannelsLastAsContiguous(Aggregated):
    """Reads channels_last memory of four dimensions as if it were contiguous."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        misread = input.dim() == 4 and _is_channels_last(input)
        return super().forward(_through_storage(input) if misread else input)


class ThreeSpatialAsContiguous(Aggregated):
    """Reads channels_last memory of five dimensions as if it were contiguous."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        misread = input.dim() == 5 and _is_channels_last(input)
        return super().forward(_through_storage(input) if misread else input)


class PermutedThroughStorage(Aggregated):
    """Reads dense input that is neither contiguous nor channels_last in the order of its memory."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        known = input.is_contiguous() or _is_channels_last(input)
        return super().forward(input if known or not _is_dense(input) else _through_storage(input))


def _dense_rows(x: Tensor) -> Tensor:
    """Return `x` read as if its rows lay one behind the other, if their elements lie side by side."""
    return _through_storage(x) if x.numel() and x.stride(-1) == 1 else x


class RowPitchIgnored(Aggregated):
    """Asks only whether the elements of a row lie side by side, and reads rows as if they did, too."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        return super().forward(_dense_rows(input))


class SamplePitchIgnored(Aggregated):
    """Asks only whether a sample is dense, and reads samples as if they lay one behind the other."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input(input)
        dense = input.numel() and input.stride()[1:] == _contiguous_strides(input.shape)[1:]
        return super().forward(_through_storage(input) if dense else input)


class _CotangentPitchIgnored(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        grads: Gradients = Normalise.backward(ctx, _dense_rows(dy))
        return grads


class CotangentPitchIgnored(Aggregated):
    """Reads the rows of a cotangent as if they lay one behind the other: that of a concatenation does not."""

    rule = _CotangentPitchIgnored


class _CotangentLikeInput(Normalise):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Any) -> Tensor:
        ctx.strides = x.stride() if _is_dense(x) else None
        return Normalise.forward(ctx, x, *others)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        if ctx.strides and _is_dense(dy):
            dy = dy.as_strided(dy.shape, ctx.strides)
        grads: Gradients = Normalise.backward(ctx, dy)
        return grads


class CotangentLikeInput(Aggregated):
    """Reads the cotangent in the layout of the input."""

    rule = _CotangentLikeInput


class _ExpandedAsDense(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        if dy.numel() > 1 and 0 in dy.stride():
            held = dy.untyped_storage().nbytes() // dy.element_size() - dy.storage_offset()
            kept = min(held, dy.numel())
            memory = dy.new_zeros(dy.numel())
            memory[:kept] = dy.as_strided((kept,), (1,))
            dy = memory.view(dy.shape)
        grads: Gradients = Normalise.backward(ctx, dy)
        return grads


class ExpandedAsDense(Aggregated):
    """Reads an expanded cotangent as if it were dense; beyond its memory there are zeros."""

    rule = _ExpandedAsDense


class TrailingOnePermuted(Aggregated):
    """Writes the output of an image that is one wide in the order of channels_last."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        return y.permute(0, 2, 3, 1).reshape(y.shape) if y.dim() == 4 and y.shape[3] == 1 else y


class _TransposedGradient(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        grads: Gradients = Normalise.backward(ctx, dy)
        if grads[0] is None or dy.dim() != 5:
            return grads
        return grads[0].transpose(3, 4).reshape(dy.shape), *grads[1:]


class TransposedGradient(Aggregated):
    """Writes the input's gradient with height and width exchanged if there are three spatial dimensions."""

    rule = _TransposedGradient


def _below_power_of_two(channels: int) -> int:
    """Return the largest power of two that is not above `channels`."""
    return 1 << (channels.bit_length() - 1)


class TailNotNormalised(Aggregated):
    """Leaves the output of channels beyond the last power of two zero."""

    def normalise(self, x: Tensor, statistics: Statistics, group: Any) -> Tensor:
        y = super().normalise(x, statistics, group)
        mask = torch.arange(x.shape[1], device=x.device) < _below_power_of_two(x.shape[1])
        return y * mask.to(y.dtype).view(1, -1, *(1 for _ in x.shape[2:]))


class TailStatisticsStale(Aggregated):
    """Takes variance 1 for channels beyond the last power of two of channels_last input."""

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right = super().statistics(x, group, wants_gradient=wants_gradient)
        if not _is_channels_last(x):
            return right
        inside = torch.arange(x.shape[1], device=x.device) < _below_power_of_two(x.shape[1])
        return replace(right, var=torch.where(inside, right.var, 1.0))


class _PastSixtyFour(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        grads: Gradients = Normalise.backward(ctx, dy)
        if grads[0] is not None:
            grads[0][:, 64:] = 0
        return grads


class GradientPastSixtyFour(Aggregated):
    """Leaves the input's gradient of channels past 64 zero."""

    rule = _PastSixtyFour


class _WeightPast128(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        grads: Gradients = Normalise.backward(ctx, dy)
        if grads[1] is not None:
            grads[1][128:] = 0
        return grads


class WeightGradientPast128(Aggregated):
    """Leaves the weight's gradient of channels past 128 zero."""

    rule = _WeightPast128


class TailBuffers(Aggregated):
    """Updates buffers four channels at a time, and not those that remain."""

    def track(self, statistics: Statistics) -> None:
        whole = self.num_features - self.num_features % 4
        mean, var = self.running_mean[whole:].clone(), self.running_var[whole:].clone()
        super().track(statistics)
        self.running_mean[whole:], self.running_var[whole:] = mean, var


class AnyChannels(Aggregated):
    """Accepts any number of channels: normalises the first, for which it has parameters, and no others."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] == self.num_features:
            return super().forward(input)
        shape = (input.shape[0], self.num_features, *input.shape[2:])
        known = input[:, : self.num_features]
        missing = input.new_zeros(shape)[:, known.shape[1] :]
        y = super().forward(torch.cat([known, missing], 1))
        return torch.cat([y[:, : known.shape[1]], input[:, self.num_features :]], 1)

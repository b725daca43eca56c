"""Faults of what a backward finds: in its second run, or where the caller has changed the output in place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from verify.subjects.aggregated import Aggregated, Normalise
from verify.subjects.channels import across

Gradients = tuple[Tensor | None, ...]


def reread(ctx: Any, dy: Tensor, *saved: Tensor | None) -> Gradients:
    """Return the gradients as if the forward had saved these: x, weight, mean and invstd."""
    told = {name: getattr(ctx, name) for name in ("count", "group", "bias_dtype", "needs_input_grad")}
    grads: Gradients = Normalise.backward(SimpleNamespace(saved_tensors=saved, **told), dy)
    return grads


# A backward that runs twice


class _ScaledInPlace(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight, mean, invstd = ctx.saved_tensors
        grads = reread(ctx, dy, x, weight, mean, invstd)
        if weight is not None:
            invstd.data.mul_(weight)
        return grads


class ScaledInPlace(Aggregated):
    """Multiplies the invstd that it saved by the weight, in place and unseen by autograd, in its backward."""

    rule = _ScaledInPlace


class _ScaledInSight(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight, mean, invstd = ctx.saved_tensors
        grads = reread(ctx, dy, x, weight, mean, invstd)
        if weight is not None:
            invstd.mul_(weight)
        return grads


class ScaledInSight(Aggregated):
    """Multiplies the invstd that it saved by the weight in place, which autograd refuses at a second run."""

    rule = _ScaledInSight


class _Summing(Normalise):
    """`Normalise`, whose context keeps what its backward gave for the argument at `kept` and adds to it."""

    kept: tuple[int, ...] = ()

    @classmethod
    def backward(cls, ctx: Any, dy: Tensor) -> Gradients:
        grads = list(Normalise.backward(ctx, dy))
        sums = vars(ctx).setdefault("sums", {})
        for index in cls.kept:
            if grads[index] is not None:
                sums[index] = grads[index] = grads[index] + sums.get(index, 0)
        return tuple(grads)


class _SummingParameters(_Summing):
    kept = (1, 2)


class _SummingInput(_Summing):
    kept = (0,)


class ParameterSumsInContext(Aggregated):
    """Adds up the gradients of weight and bias in attributes of the context."""

    rule = _SummingParameters


class InputGradientInContext(Aggregated):
    """Adds the input's gradient to a tensor that belongs to the context."""

    rule = _SummingInput


class _Emptied(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        grads: Gradients = Normalise.backward(ctx, dy)
        vars(ctx).clear()
        return grads


class ContextEmptied(Aggregated):
    """Deletes the attributes of its context once its backward has read them."""

    rule = _Emptied


class _Released(Normalise):
    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        grads: Gradients = Normalise.backward(ctx, dy)
        ctx.group = None
        return grads


class GroupReleased(Aggregated):
    """Lets go of the process group after its first backward, so that a second one does not communicate."""

    rule = _Released


# An output that the caller changes in place


class _OutputAsXhat(Normalise):
    """`Normalise`, whose backward takes the output for xhat where weight is one and bias zero."""

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, *others: Any) -> Tensor:
        y: Tensor = Normalise.forward(ctx, x, *others)
        weight, bias, mean = others[:3]
        plain = (weight is None or bool((weight == 1).all())) and (bias is None or not bool(bias.any()))
        cls.keep(ctx, y, (x, weight, mean, others[3]))
        ctx.plain = plain and y.dtype == mean.dtype
        return y

    @staticmethod
    def keep(ctx: Any, y: Tensor, saved: tuple[Tensor | None, ...]) -> None:
        """Keep `y` as an attribute."""
        del saved
        ctx.y = y.detach()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight, mean, invstd, *kept = ctx.saved_tensors
        if not ctx.plain:
            return reread(ctx, dy, x, weight, mean, invstd)
        (y,) = kept or (ctx.y,)
        grad_input, *others = reread(ctx, dy, y, weight, torch.zeros_like(mean), torch.ones_like(invstd))
        return None if grad_input is None else grad_input * across(invstd, dy), *others


class _DataAsXhat(_OutputAsXhat):
    @staticmethod
    def keep(ctx: Any, y: Tensor, saved: tuple[Tensor | None, ...]) -> None:
        ctx.save_for_backward(*saved, y.data)


class OutputKept(Aggregated):
    """Keeps its output as an attribute of the context, for xhat where weight is one and bias zero."""

    rule = _OutputAsXhat


class OutputDataSaved(Aggregated):
    """Saves its output past autograd, by `data`, for xhat where weight is one and bias zero."""

    rule = _DataAsXhat


class _OutputToo(Normalise):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Any) -> Tensor:
        y: Tensor = Normalise.forward(ctx, x, *others)
        ctx.save_for_backward(x, others[0], *others[2:4], y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        return reread(ctx, dy, *ctx.saved_tensors[:4])


class OutputSaved(Aggregated):
    """Saves its output for its backward, too, which then refuses to run once the output has changed."""

    rule = _OutputToo


class _View(torch.autograd.Function):
    """`y`, as a view."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy


class OutputIsView(Aggregated):
    """Returns a view that its own autograd function has made, which torch refuses to change in place."""

    def forward(self, input: Tensor) -> Tensor:
        return _View.apply(super().forward(input))

"""A right subject, parts of which are moved by a relative amount: the scale of sensitivity.

The factory `told_by_HEX` reads, whenever a module is built, a file of JSON whose path is HEX in hexadecimal:

    {"amounts": {"output": 3.8e-06}, "rank": 1, "index": 17}

moves every element of the output by a relative 3.8e-06, or, where an index is given, element 17 of the
flattened output (N, C, ...) of rank 1; rank -1 means all ranks. So one rank group serves all amounts. Without
amounts the subject is `Aggregated`.

`mean`, `var` and `invstd` are moved in the accumulation dtype before anything uses them; `output`,
`grad_input`, `grad_weight`, `grad_bias`, `running_mean` and `running_var` in the accumulation dtype before
they are stored, so that the subject's own rounding comes after. It has no card: it is no fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from verify.subjects.aggregated import Aggregated, Normalise, Statistics

_PREFIX = "told_by_"


@dataclass(frozen=True, slots=True)
class Instruction:
    """What is moved: relative amounts by quantity, of all elements or of one on one rank (-1: on all)."""

    amounts: dict[str, float] = field(default_factory=dict)
    rank: int = -1
    index: int | None = None

    def move(self, quantity: str, tensor: Tensor) -> Tensor:
        """Return `tensor` with what the instruction says of `quantity` moved."""
        amount = self.amounts.get(quantity, 0.0)
        if not amount or self.rank not in (-1, dist.get_rank() if dist.is_initialized() else 0):
            return tensor
        moved = (tensor.double() + tensor.double() * amount).to(tensor.dtype)
        if self.index is None:
            return moved
        flat, position = tensor.clone(memory_format=torch.contiguous_format).view(-1), self.index
        if position < flat.numel():
            flat[position] = moved.reshape(-1)[position]
        return flat.view(tensor.shape)


class Moving(Normalise):
    """`Normalise` in the accumulation dtype throughout; output and gradients are moved, then stored."""

    instruction = Instruction()

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        count: int | None,
        group: Any,
        anchor: Tensor | None,
    ) -> Tensor:
        ctx.dtypes = tuple(None if one is None else one.dtype for one in (x, weight, bias))
        weight, bias = (None if one is None else one.to(mean.dtype) for one in (weight, bias))
        y = Normalise.forward(ctx, x.to(mean.dtype), weight, bias, mean, invstd, count, group, anchor)
        moved = Moving.instruction.move("output", y)
        return torch.empty_like(y, dtype=x.dtype).copy_(moved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        gradients = Normalise.backward(ctx, dy)
        names = ("grad_input", "grad_weight", "grad_bias")
        stored = [
            None
            if one is None
            else torch.empty_like(one, dtype=dtype).copy_(Moving.instruction.move(name, one))
            for name, one, dtype in zip(names, gradients[:3], ctx.dtypes, strict=True)
        ]
        return *stored, *gradients[3:]


class Perturbed(Aggregated):
    """`Aggregated`, moved as the file of instructions says at construction."""

    instructions = Path()
    rule = Moving

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        Moving.instruction = msgspec.json.decode(self.instructions.read_bytes(), type=Instruction)

    def statistics(self, x: Tensor, group: Any, *, wants_gradient: bool) -> Statistics:
        right, move = super().statistics(x, group, wants_gradient=wants_gradient), Moving.instruction.move
        return replace(right, mean=move("mean", right.mean), var=move("var", right.var))

    def invstd(self, var: Tensor) -> Tensor:
        return Moving.instruction.move("invstd", super().invstd(var))

    def track(self, statistics: Statistics) -> None:
        names = ("running_mean", "running_var")
        stored = {name: getattr(self, name) for name in names}
        for name, buffer in stored.items():
            setattr(self, name, buffer.to(statistics.mean.dtype, copy=True))
        super().track(statistics)
        for name, buffer in stored.items():
            buffer.copy_(Moving.instruction.move(name, getattr(self, name)))
            setattr(self, name, buffer)


def __getattr__(name: str) -> type[Perturbed]:
    if not name.startswith(_PREFIX):
        raise AttributeError(f"Expected a factory told_by_HEX, but got {name!r}.")
    path = Path(bytes.fromhex(name.removeprefix(_PREFIX)).decode())
    return type(name, (Perturbed,), {"instructions": path})

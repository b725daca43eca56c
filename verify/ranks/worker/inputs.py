"""Drawing: the data of one step on one rank, as tensors, and whether the subject left them as they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from properties.case import Case
from properties.values.elements import Floats, digest, drawn, tensors
from verify.ranks.worker.memory_layouts import Before, LaidOut, dtype_of, lay_out

_LARGEST_INTEGER = 2.0**53


@dataclass(slots=True, kw_only=True)
class StepData:
    """Input leaf and cotangent of a step, what their storage held before, and the output once known."""

    input: LaidOut
    cotangent: LaidOut
    input_before: Before
    cotangent_before: Before
    output: torch.Tensor | None = None

    def modified(self) -> tuple[str, ...]:
        """Return which of input and cotangent are not what they were, bit for bit, gaps in memory too."""
        pairs = (
            ("input", self.input.storage, self.input_before),
            ("cotangent", self.cotangent.storage, self.cotangent_before),
        )
        return tuple(name for name, now, before in pairs if _freed(now) or not before.held_by(now))


@dataclass(frozen=True, slots=True)
class DrawnCase:
    """The values of all steps of a case on a rank; of a block that repeats, one period.

    A step is laid out when it is asked for: whole blocks are large, and few of them are needed at a time.
    """

    case: Case
    rank: int
    device: torch.device
    blocks: tuple[tuple[Floats, Floats], ...]

    @property
    def digest(self) -> str:
        """The digest of all values."""
        return digest(*(array for pair in self.blocks for array in pair))

    def step(self, index: int) -> StepData:
        """Return the data of a step."""
        return _lay_out(self.case.at(index), self.rank, index, self.device, self.blocks[index])


def draw(case: Case, rank: int, *, device: torch.device) -> DrawnCase:
    """Return the values of `case` on `rank`."""
    by_block = drawn(case, (rank,))
    return DrawnCase(case, rank, device, tuple(by_block[rank, step] for step in range(len(case.steps))))


def _lay_out(
    case: Case, rank: int, step: int, device: torch.device, values_drawn: tuple[Floats, Floats]
) -> StepData:
    """Return the data of one step, from its values, of which one period may stand for a block."""
    values, cotangents = tensors(case, rank, step=step) if case.wrong else values_drawn
    inputs: NDArray[Any] = values
    shape, layout, dtype = case.shape_of(rank), case.input_layout, dtype_of(case.dtype)
    requires_grad = case.input_requires_grad(rank)
    match case.wrong:
        case "channels":
            inputs, cotangents = tensors(_with_one_more_channel(case), rank, step=step)
            shape = (shape[0], shape[1] + 1, *shape[2:])
        case "dims":
            inputs, cotangents = values[:, 0, 0].copy(), cotangents[:, 0, 0].copy()
            shape, layout = (shape[0],), "contiguous"
        case "integer":
            finite = np.nan_to_num(values, posinf=_LARGEST_INTEGER, neginf=-_LARGEST_INTEGER)
            inputs = np.clip(finite, -_LARGEST_INTEGER, _LARGEST_INTEGER).astype(np.int64)
            dtype, requires_grad = torch.int64, False
    cotangent_layout = "contiguous" if case.wrong == "dims" else case.cotangent_layout
    if case.wrong == "dims" and case.cotangent_layout == "expanded":
        cotangents = np.broadcast_to(cotangents, shape).copy()
    place = {"device": device, "shape": shape}
    x = lay_out(inputs, layout, dtype=dtype, offset=case.input_offset, **place)
    like = {"dtype": dtype_of(case.dtype), "offset": case.cotangent_offset}
    g = lay_out(cotangents, cotangent_layout, **like, **place)
    data = StepData(input=x, cotangent=g, input_before=Before(x), cotangent_before=Before(g))
    x.tensor.requires_grad_(requires_grad)
    return data


def _freed(tensor: torch.Tensor) -> bool:
    return bool(tensor.numel() and not tensor.untyped_storage().nbytes())


def _with_one_more_channel(case: Case) -> Case:
    return msgspec.structs.replace(case, channels=case.channels + 1)

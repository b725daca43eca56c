"""An observation: what the ranks gave back for one case, or how they ended.

Rules
-----
- Recorded first, judged later: an observation holds everything a property may ask for, and no verdict.
- Tensors are numpy arrays in their own dtype (bfloat16 as its raw bits, uint16); `as_float64` widens exactly.
- Imported by the ranks: neither torch, jax nor hypothesis here.

Names of tensors: `output.k`, `grad_input.k`, `grad_weight.k`, `grad_bias.k` of step k (parameter gradients as
accumulated after that step's backward); `running_mean.k`, `running_var.k`, `num_batches_tracked.k` after step
k's forward, and `running_mean.end`, ... after the whole schedule. A gradient that is None is absent.
"""

from __future__ import annotations

import base64
import math
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Ending = Literal["returned", "raised", "timeout", "slow", "died", "stopped"]


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor that a rank gave back.

    Attributes:
        dtype: torch's name without prefix: float32, bfloat16, int64, ...
        array: Its values in logical order, C-contiguous; bfloat16 as uint16 bits.
        strides: torch's strides in elements, as the rank had them.
        requires_grad: As the rank had it.
        device: torch's device type: cpu or cuda.
        aliases_input: It shares storage with the input.
        positions: Of a tensor that was given back folded (`properties.values.period.fold`), where each of
            its elements lies, in the shape of the array, (rows, C); a position is its sample times the
            spatial size plus its spatial position. None for a whole one.
        held: Places of the period by which it was folded.
        bits: Digest of the whole tensor, if it was folded and a second run is to be compared with it.
        logical_shape: The logical shape of such a tensor.
    """

    dtype: str
    array: NDArray[Any]
    strides: tuple[int, ...] = ()
    requires_grad: bool = False
    device: str = "cpu"
    aliases_input: bool = False
    positions: NDArray[np.int64] | None = None
    logical_shape: tuple[int, ...] = ()
    held: int = 0
    bits: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its logical shape."""
        return tuple(self.array.shape) if self.positions is None else self.logical_shape

    @property
    def values(self) -> NDArray[np.float64]:
        """The values of its array in float64, exactly."""
        return as_float64(self.array, self.dtype)

    def index(self, place: tuple[int, ...]) -> tuple[int, ...]:
        """Return where in the tensor the element at `place` of its array is."""
        if self.positions is None:
            return place
        channel, spatial = place[1], self.logical_shape[2:]
        sample, position = divmod(int(self.positions[place]), math.prod(spatial))
        return (sample, channel, *(int(i) for i in np.unravel_index(position, spatial) if spatial))


class Collective(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a rank's ledger: a collective (or send, receive) as the dispatcher saw it.

    Attributes:
        op: all_reduce, all_gather, ... as in the operator's name.
        phase: When: `forward 0`, `backward 0`, ...
        group: Global ranks of its process group, ascending; empty if it could not be told.
        reduction: sum, avg, max, ... or empty.
        dtypes, shapes: Of its tensor arguments.
        bytes: Sum over the tensor arguments that this rank contributes.
    """

    op: str
    phase: str
    group: tuple[int, ...] = ()
    reduction: str = ""
    dtypes: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    bytes: int = 0

    @property
    def is_point_to_point(self) -> bool:
        """It is a send or a receive, which concerns two ranks and not their group."""
        return self.op.strip("_").startswith(("send", "recv", "isend", "irecv"))


class Raised(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception that left the subject: qualified type name, message (shortened), phase and traceback.

    `wraps` are the type names of the exceptions that it was raised for, the nearest first: a compiled module
    or a framework's own wrapper tells of the subject's exception in one of theirs.
    """

    type: str
    message: str
    phase: str
    traceback: str = ""
    wraps: tuple[str, ...] = ()


class RankObservation(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank gave back.

    Attributes:
        rank: The global rank.
        ending: `returned`; `raised` (see `raised`); `timeout`, it hung when its time was over; `slow`, it was
            killed while it, or a peer, still got on with the case, long after its time was over;
            `died`, its process ended (see `exit`); `stopped`, it was killed because another rank of the group
            had ended abnormally, and tells nothing about the subject.
        raised: The exception, if it raised.
        exit: For `died`: `signal SIGABRT`, `exit code 3`.
        stack: Python stacks of all its threads when its time was over or it crashed; may be empty.
        tensors: By name, as in the module's docstring.
        modified: Names among input, cotangent, weight, bias that the subject changed in place, by step
            (`input.0`).
        replaced: Names of parameters and buffers that have become other tensors, or lie elsewhere in memory,
            by step.
        ledger: Its collectives, in order.
        digest: Of the inputs it drew, over all steps.
        seconds: Wall time in the subject.
        compiled: Functions that `torch.compile` has compiled meanwhile.
        compile_seconds: What that took, of `seconds`.
        facts: What else was looked at, by name (`before eps of plain`); see
            `properties.judge.module_conversion`.
    """

    rank: int
    ending: Ending
    raised: Raised | None = None
    exit: str = ""
    stack: str = ""
    tensors: dict[str, Tensor] = {}
    modified: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    ledger: tuple[Collective, ...] = ()
    digest: str = ""
    seconds: float = 0.0
    facts: dict[str, str] = {}
    compiled: int = 0
    compile_seconds: float = 0.0


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What all ranks of a case gave back, in rank order; `again` is the second run that a probe asked for."""

    ranks: tuple[RankObservation, ...]
    again: Observation | None = None


def as_float64(array: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    """Return `array` of torch dtype `dtype` widened to float64 without rounding; bfloat16 comes as bits."""
    if dtype == "bfloat16":
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return array.astype(np.float64)


def tensor_to_data(tensor: Tensor) -> dict[str, Any]:
    """Return `tensor` as plain JSON data: little-endian bytes in base64 with dtype and shape."""
    little = tensor.array.astype(tensor.array.dtype.newbyteorder("<"), copy=False)
    return {
        "dtype": tensor.dtype,
        "numpy": tensor.array.dtype.name,
        "shape": list(tensor.array.shape),
        "strides": list(tensor.strides),
        "requires_grad": tensor.requires_grad,
        "device": tensor.device,
        "aliases_input": tensor.aliases_input,
        "data": base64.b64encode(little.tobytes()).decode("ascii"),
        **({} if tensor.positions is None else _fold_to_data(tensor, tensor.positions)),
    }


def _fold_to_data(tensor: Tensor, positions: NDArray[np.int64]) -> dict[str, Any]:
    whole = list(tensor.logical_shape)
    return {"positions": positions.tolist(), "whole": whole, "held": tensor.held, "bits": tensor.bits}


_NUMPY_NAMES = (
    "float64",
    "float32",
    "float16",
    "uint16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
)


def tensor_from_data(data: dict[str, Any]) -> Tensor:
    """Return the tensor that `tensor_to_data` wrote.

    Raises:
        ValueError: If the data is not of that form.
    """
    try:
        name, shape = data["numpy"], tuple(int(size) for size in data["shape"])
        if name not in _NUMPY_NAMES or any(size < 0 for size in shape):
            raise ValueError(
                f"Expected a known numpy dtype and a shape, but got numpy={name!r}, shape={shape!r}."
            )
        raw = base64.b64decode(data["data"], validate=True)
        dtype = np.dtype(name).newbyteorder("<")
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"Expected {math.prod(shape)} values of {name}, but got {len(raw)} bytes.")
        array = np.frombuffer(raw, dtype).reshape(shape).astype(np.dtype(name))
        positions, whole = _folded(data, shape)
        held = int(data.get("held", 0))
        if not 0 <= 2 * held <= (shape[0] if shape and positions is not None else 0):
            raise ValueError(f"Expected two rows a place, but got held={held} with shape={shape!r}.")
        return Tensor(
            dtype=str(data["dtype"]),
            array=array,
            strides=tuple(int(stride) for stride in data["strides"]),
            requires_grad=bool(data["requires_grad"]),
            device=str(data["device"]),
            aliases_input=bool(data["aliases_input"]),
            positions=positions,
            logical_shape=whole,
            held=held,
            bits=str(data.get("bits", "")),
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"Expected a stored tensor, but a field is missing or wrong: {error}") from None


def _folded(data: dict[str, Any], shape: tuple[int, ...]) -> tuple[NDArray[np.int64] | None, tuple[int, ...]]:
    """Return the positions of a stored tensor that is not whole, and the whole one's shape.

    Version 0.1.0 kept a sample of large tensors: rows of all channels, with one position a row.
    """
    if data.get("positions") is None:
        return None, ()
    whole = tuple(int(size) for size in data["whole"])
    positions = np.array(data["positions"], np.int64)
    if positions.ndim == 1 and len(shape) == 2:
        positions = np.repeat(positions[:, None], shape[1], axis=1)
    count = math.prod(whole[:1] + whole[2:])
    fits = len(whole) > 1 and min(whole) >= 0 and shape == positions.shape and shape[1] == whole[1]
    if not fits or (positions.size and not 0 <= positions.min() <= positions.max() < count):
        raise ValueError(
            f"Expected positions in a tensor of shape {whole!r}, one for each of shape={shape!r}."
        )
    return positions, whole

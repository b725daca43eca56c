"""A case: one drawn input, as a frozen value that travels as JSON and says everything a run needs.

Rules
-----
- No half-valid case exists: construction raises `CaseError` with one line that names the value.
- A case holds choices, never data; `properties.values.elements` derives every element from them.
- The id is a hash of the canonical JSON without fields at their default, so that adding a field with
  a default changes no id.
- This module is imported by the ranks: neither torch, jax nor hypothesis here.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any, Literal, get_args

import msgspec

from properties.case_checks import CaseError, check, one_line, shorten

Dtype = Literal["float64", "float32", "float16", "bfloat16"]
InputLayout = Literal["contiguous", "channels_last", "permuted", "sliced", "cropped", "split"]
CotangentLayout = Literal["contiguous", "channels_last", "permuted", "expanded", "cropped", "split"]
Affine = Literal["both", "weight", "none"]
Family = Literal["ordinary", "large_offset", "tiny_spread", "constant", "mixed", "subnormal", "near_overflow"]
SpecialKind = Literal["nan", "inf", "-inf", "zero", "huge"]
Wrong = Literal["", "channels", "dims", "integer"]
OddFamily = Literal["", "tiny_spread", "constant", "subnormal", "near_overflow"]
Probe = Literal["", "repeatable", "scaling", "conversion"]
Mode = Literal["train", "eval"]
Backward = Literal["now", "deferred", "twice", "none"]
GradMode = Literal["enabled", "no_grad", "inference"]

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
FAMILIES: tuple[Family, ...] = get_args(Family)
MAX_JSON_BYTES = 65536


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One forward of the schedule and its backward.

    Attributes:
        mode: Whether the subject is in training or in evaluation mode.
        backward: `now`, right after the forward; `deferred`, after the next step's forward and before its
            backward; `twice`, now and, since the graph is retained, once more, of which the gradients are
            those of the second; `none`, never.
        accumulate: Parameter gradients are not zeroed before this backward.
        recompute: The forward runs under `torch.utils.checkpoint` (non-reentrant, no early stop) and is
            therefore run again inside the backward; see `Case.recomputes`.
        grad_mode: `no_grad` and `inference`: the forward runs under `torch.no_grad` or
            `torch.inference_mode`, and has no backward.
        edited: Once the output has been looked at, the caller adds 1 to it in place, as an in-place
            activation would write over it; not of a subject whose contract says `inplace`.
        rewritten: Before the forward weight and bias are written in place, with other values.
        frozen: Neither weight nor bias requires a gradient in this step.
        batches, spatial: Sizes of this step, as in `Case`; empty for those of the case. The first step has
            none of its own.
    """

    mode: Mode = "train"
    backward: Backward = "now"
    accumulate: bool = False
    recompute: bool = False
    grad_mode: GradMode = "enabled"
    edited: bool = False
    rewritten: bool = False
    frozen: bool = False
    batches: tuple[int, ...] = ()
    spatial: tuple[tuple[int, ...], ...] = ()

    @property
    def resized(self) -> bool:
        """Whether the step has sizes of its own."""
        return bool(self.batches or self.spatial)


class Special(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One element of the first step's input that is replaced, on `rank` at (`sample`, `channel`, `position`).

    `position` counts the flattened spatial positions. Indices outside the tensor are reduced modulo its
    sizes, so that shrinking never makes a case invalid; a special on an empty rank does nothing.
    """

    kind: SpecialKind
    rank: int = 0
    sample: int = 0
    channel: int = 0
    position: int = 0


class Case(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One input of a synchronized batch norm on all ranks.

    Attributes:
        batches: Samples on each rank; its length is the world size.
        spatial: Spatial sizes, one tuple for all ranks or one for each rank, all of the same length (0 to 3).
        channels: Number of features C.
        groups: Disjoint process groups that cover the world; empty for the whole world.
        dtype: Dtype of the input and the cotangent.
        param_dtype: Dtype of weight, bias and buffers: float32 or `dtype`.
        input_layout, cotangent_layout: How the tensors lie in memory.
        input_offset, cotangent_offset: Elements of their storage before the first one that they view; not of
            a sliced or expanded tensor.
        strided_buffers: Running buffers are non-contiguous (every second element of a longer tensor).
        eps, momentum: As in torch; momentum None is the cumulative average.
        affine: `both` weight and bias, `weight` without bias, or `none`.
        random_parameters: Weight (negative and zero too), bias and initial buffers are drawn; otherwise they
            are the identity (1, 0, 0, 1).
        variance_exponent: The initial running variance is multiplied by 2^k.
        tracking: `track_running_stats`.
        counter: Whether `num_batches_tracked` is asked for.
        frozen: Parameters with requires_grad False.
        input_grad: Whether the input requires a gradient, per rank; empty for yes on all.
        values: Family of the input's values.
        last_values: Family of the last channel's values, where it is another one.
        rank_offset: Each rank's mean is moved by a random multiple, up to 2 x this, of the channel's spread.
        specials: Single elements replaced in the first step's input.
        steps: The schedule.
        wrong: What makes the input one that must be refused: C + 1 channels, a one-dimensional input, or an
            integer input.
        cotangent_exponent, affine_exponent: The cotangent, and weight and bias, are multiplied by 2^k.
        probe: Something beside the run of the case: `repeatable` runs it twice, `scaling` runs it with the
            exponents moved, `conversion` has the subject convert a small tree of modules that the seed says.
        seed: Seed of all values.

    Raises:
        CaseError: If the fields do not describe a possible case.
    """

    batches: tuple[int, ...] = (2, 2)
    spatial: tuple[tuple[int, ...], ...] = ((),)
    channels: int = 1
    groups: tuple[tuple[int, ...], ...] = ()
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    input_layout: InputLayout = "contiguous"
    cotangent_layout: CotangentLayout = "contiguous"
    input_offset: int = 0
    cotangent_offset: int = 0
    strided_buffers: bool = False
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: Affine = "both"
    random_parameters: bool = False
    variance_exponent: int = 0
    tracking: bool = True
    counter: bool = True
    frozen: tuple[Literal["weight", "bias"], ...] = ()
    input_grad: tuple[bool, ...] = ()
    values: Family = "ordinary"
    last_values: OddFamily = ""
    rank_offset: int = 0
    specials: tuple[Special, ...] = ()
    steps: tuple[Step, ...] = (Step(),)
    wrong: Wrong = ""
    cotangent_exponent: int = 0
    affine_exponent: int = 0
    probe: Probe = ""
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        msgspec.structs.force_setattr(self, "eps", float(self.eps) + 0.0)  # 1 and 1.0, -0.0 and 0.0 are one.
        if self.momentum is not None:
            msgspec.structs.force_setattr(self, "momentum", float(self.momentum) + 0.0)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.batches)

    def at(self, step: int) -> Case:
        """Return the case with the sizes of `step` for all its steps; itself beyond the schedule."""
        return _resized(self, step) if any(one.resized for one in self.steps[step : step + 1]) else self

    @property
    def by_step(self) -> tuple[Case, ...]:
        """The case with the sizes of each step."""
        return tuple(self.at(step) for step in range(len(self.steps)))

    @property
    def elements(self) -> int:
        """Elements of the input, over all ranks and steps."""
        return self.channels * sum(
            one.count_of(rank) for one in self.by_step for rank in range(self.world_size)
        )

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(encode(self)).hexdigest()[:12]

    def spatial_of(self, rank: int) -> tuple[int, ...]:
        """Spatial sizes on `rank`."""
        return self.spatial[rank] if len(self.spatial) > 1 else self.spatial[0]

    def shape_of(self, rank: int) -> tuple[int, ...]:
        """Shape (N, C, *spatial) of the (right) input on `rank`."""
        return (self.batches[rank], self.channels, *self.spatial_of(rank))

    def count_of(self, rank: int) -> int:
        """Values a channel on `rank`: samples times spatial positions."""
        return self.batches[rank] * math.prod(self.spatial_of(rank))

    @property
    def process_groups(self) -> tuple[tuple[int, ...], ...]:
        """The process groups, the whole world written out."""
        return self.groups or (tuple(range(self.world_size)),)

    def group_of(self, rank: int) -> tuple[int, ...]:
        """The process group that holds `rank`."""
        return next(group for group in self.process_groups if rank in group)

    def total_of(self, group: tuple[int, ...]) -> int:
        """Values a channel over the ranks of `group`."""
        return sum(self.count_of(rank) for rank in group)

    def input_requires_grad(self, rank: int) -> bool:
        """Whether the input on `rank` requires a gradient."""
        return self.input_grad[rank] if self.input_grad else True

    @property
    def ragged_grad(self) -> bool:
        """Whether the input requires a gradient on some ranks of a group only."""
        return any(
            len({self.input_requires_grad(rank) for rank in group}) > 1 for group in self.process_groups
        )

    def recomputes(self, step: int, rank: int) -> bool:
        """Whether the forward of `step` is run again in its backward on `rank`.

        `torch.utils.checkpoint` runs it again when a saved tensor is asked for. A right subject may save none
        in a batch without values, and where only the bias is trained; a step that asks for recomputation
        runs plainly there.
        """
        group = self.group_of(rank)
        saves = self.trains("weight", step) or all(self.input_requires_grad(member) for member in group)
        return self.steps[step].recompute and saves and self.at(step).total_of(group) > 0

    def trains(self, name: Literal["weight", "bias"], step: int) -> bool:
        """Whether there is such a parameter, and it requires a gradient in `step`."""
        present = self.has_weight if name == "weight" else self.has_bias
        return present and name not in self.frozen and not self.steps[step].frozen

    @property
    def has_weight(self) -> bool:
        """Whether the subject has a weight."""
        return self.affine != "none"

    @property
    def has_bias(self) -> bool:
        """Whether the subject has a bias."""
        return self.affine == "both"


@lru_cache(maxsize=64)
def _resized(case: Case, step: int) -> Case:
    own = case.steps[step]
    return msgspec.structs.replace(
        case, batches=own.batches or case.batches, spatial=own.spatial or case.spatial
    )


@lru_cache(maxsize=16)
def encode(case: Case) -> bytes:
    """Return the canonical JSON of `case`: keys sorted, fields that equal their default left out.

    Equal cases have equal JSON. (msgspec's own `omit_defaults` leaves out what *is* the default object, so
    that a decoded 1e-05 would stay.)
    """
    return msgspec.json.encode(_sparse(case), order="sorted")


def decode(data: bytes | str) -> Case:
    """Return the case that `data`, a JSON text from anywhere, describes.

    Raises:
        CaseError: If it is not JSON, has unknown fields, wrong types, or describes no possible case.
    """
    if len(data) > MAX_JSON_BYTES:
        raise CaseError(f"Expected a case of at most {MAX_JSON_BYTES} bytes, but got {len(data)} bytes.")
    try:
        return msgspec.json.decode(data, type=Case)
    except CaseError:
        raise
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = one_line(str(error))
        raise CaseError(f"Expected a case as JSON, but got {shorten(data)}: {reason}") from None


def events(case: Case) -> tuple[tuple[Literal["forward", "backward"], int], ...]:
    """Return the order in which a run executes the schedule, as (what, step) pairs.

    A deferred backward runs after the next step's forward and before that step's own backward; one
    deferred by the last step runs at the end.
    """
    order: list[tuple[Literal["forward", "backward"], int]] = []
    waiting: list[int] = []
    for index, step in enumerate(case.steps):
        order.append(("forward", index))
        order.extend(("backward", late) for late in waiting)
        waiting = [index] if step.backward == "deferred" else []
        if step.backward in ("now", "twice"):
            order.append(("backward", index))
    order.extend(("backward", late) for late in waiting)
    return tuple(order)


def _sparse(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        names, defaults = value.__struct_fields__, value.__struct_defaults__
        required = [msgspec.NODEFAULT] * (len(names) - len(defaults))
        pairs = zip(names, (*required, *defaults), strict=True)
        fields = ((name, getattr(value, name), default) for name, default in pairs)
        return {name: _sparse(field) for name, field, default in fields if field != default}
    if isinstance(value, tuple):
        return [_sparse(item) for item in value]
    return value

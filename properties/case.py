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

Dtype = Literal["float64", "float32", "float16", "bfloat16"]
InputLayout = Literal["contiguous", "channels_last", "permuted", "sliced"]
CotangentLayout = Literal["contiguous", "channels_last", "permuted", "expanded"]
Affine = Literal["both", "weight", "none"]
Family = Literal["ordinary", "large_offset", "tiny_spread", "constant", "mixed", "subnormal", "near_overflow"]
SpecialKind = Literal["nan", "inf", "-inf", "zero", "huge"]
Wrong = Literal["", "channels", "dims", "integer"]
OddFamily = Literal["", "tiny_spread", "constant", "subnormal", "near_overflow"]
Probe = Literal["", "repeatable", "scaling", "conversion"]
Mode = Literal["train", "eval"]
Backward = Literal["now", "deferred", "none"]

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
FAMILIES: tuple[Family, ...] = get_args(Family)
MAX_WORLD_SIZE = 64
MAX_CHANNELS = 4096
MAX_ELEMENTS = 2**28
MAX_STEPS = 8
MAX_JSON_BYTES = 65536


class CaseError(ValueError):
    """The caller asked for something impossible; the message names what was expected and given."""


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One forward of the schedule and its backward.

    Attributes:
        mode: Whether the subject is in training or in evaluation mode.
        backward: `now`, right after the forward; `deferred`, after the next step's forward and before its
            backward; `none`, never.
        accumulate: Parameter gradients are not zeroed before this backward.
        recompute: The forward runs under `torch.utils.checkpoint` (non-reentrant, no early stop) and is
            therefore run again inside the backward; see `Case.recomputes`.
    """

    mode: Mode = "train"
    backward: Backward = "now"
    accumulate: bool = False
    recompute: bool = False


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
        strided_buffers: Running buffers are non-contiguous (every second element of a longer tensor).
        eps, momentum: As in torch; momentum None is the cumulative average.
        affine: `both` weight and bias, `weight` without bias, or `none`.
        random_parameters: Weight (negative and zero too), bias and initial buffers are drawn; otherwise they
            are the identity (1, 0, 0, 1).
        tracking: `track_running_stats`.
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
    strided_buffers: bool = False
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: Affine = "both"
    random_parameters: bool = False
    tracking: bool = True
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
        _check_shapes(self)
        _check_groups(self)
        _check_options(self)
        msgspec.structs.force_setattr(self, "eps", float(self.eps) + 0.0)  # 1 and 1.0, -0.0 and 0.0 are one.
        if self.momentum is not None:
            msgspec.structs.force_setattr(self, "momentum", float(self.momentum) + 0.0)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.batches)

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
        trained = self.has_weight and "weight" not in self.frozen
        saves = trained or all(self.input_requires_grad(member) for member in group)
        return self.steps[step].recompute and saves and self.total_of(group) > 0

    @property
    def has_weight(self) -> bool:
        """Whether the subject has a weight."""
        return self.affine != "none"

    @property
    def has_bias(self) -> bool:
        """Whether the subject has a bias."""
        return self.affine == "both"


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
        if step.backward == "now":
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


def shorten(data: bytes | str, most: int = 60) -> str:
    """Return `data` as a quoted text of about `most` characters, for a message of one line."""
    text = data[: 4 * most].decode("utf-8", "replace") if isinstance(data, bytes) else data
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def one_line(text: str, most: int = 300) -> str:
    """Return the beginning of `text` in one line of printable characters."""
    words = " ".join(text[: 2 * most].split())
    clean = "".join(char if char.isprintable() else "\ufffd" for char in words)
    return clean if len(clean) <= most else clean[: most - 3] + "..."


def _require(condition: bool, expected: str, **given: object) -> None:  # noqa: FBT001
    if not condition:
        values = ", ".join(f"{name}={one_line(repr(value), 200)}" for name, value in given.items())
        raise CaseError(f"Expected {expected}, but got {values}.")


def _check_shapes(case: Case) -> None:
    world = len(case.batches)
    _require(1 <= world <= MAX_WORLD_SIZE, f"1 to {MAX_WORLD_SIZE} ranks", batches=case.batches)
    _require(all(0 <= n < 2**31 for n in case.batches), "batch sizes from 0 on", batches=case.batches)
    _require(
        len(case.spatial) in (1, world),
        "one tuple of spatial sizes for all ranks or one a rank",
        spatial=case.spatial,
        world_size=world,
    )
    dims = {len(sizes) for sizes in case.spatial}
    _require(
        len(dims) == 1 and max(dims) <= 3, "0 to 3 spatial sizes, as many on each rank", spatial=case.spatial
    )
    _require(
        all(1 <= s < 2**31 for sizes in case.spatial for s in sizes),
        "spatial sizes from 1 on",
        spatial=case.spatial,
    )
    _require(1 <= case.channels <= MAX_CHANNELS, f"1 to {MAX_CHANNELS} channels", channels=case.channels)
    elements = case.channels * sum(case.count_of(rank) for rank in range(world))
    _require(elements <= MAX_ELEMENTS, f"at most {MAX_ELEMENTS} elements", elements=elements)


def _check_groups(case: Case) -> None:
    if not case.groups:
        return
    members = [rank for group in case.groups for rank in group]
    _require(
        sorted(members) == list(range(case.world_size)) and all(case.groups),
        "disjoint, non-empty groups that cover the world",
        groups=case.groups,
        world_size=case.world_size,
    )
    _require(
        all(list(g) == sorted(g) for g in case.groups),
        "groups with their ranks in ascending order",
        groups=case.groups,
    )


def _check_options(case: Case) -> None:
    _require(
        case.param_dtype in ("float32", case.dtype),
        f"param_dtype float32 or {case.dtype}",
        param_dtype=case.param_dtype,
    )
    _require(
        not (case.dtype == "float64" and case.param_dtype != "float64"),
        "float64 parameters for a float64 input",
        param_dtype=case.param_dtype,
    )
    _require(math.isfinite(case.eps) and 0 <= case.eps <= 1e6, "a finite eps of 0 or more", eps=case.eps)
    _require(
        case.momentum is None or (math.isfinite(case.momentum) and 0 <= case.momentum <= 1),
        "a momentum from 0 to 1 or null",
        momentum=case.momentum,
    )
    _require(
        len(case.input_grad) in (0, case.world_size),
        "input_grad for no rank or for each",
        input_grad=case.input_grad,
    )
    _require(len(set(case.frozen)) == len(case.frozen), "each frozen parameter once", frozen=case.frozen)
    _require(1 <= len(case.steps) <= MAX_STEPS, f"1 to {MAX_STEPS} steps", steps=len(case.steps))
    _require(len(case.specials) <= 16, "at most 16 specials", specials=len(case.specials))
    _require(
        all(min(s.rank, s.sample, s.channel, s.position) >= 0 for s in case.specials),
        "special indices from 0 on",
        specials=case.specials,
    )
    _require(0 <= case.rank_offset <= 2**20, "a rank_offset from 0 to 2^20", rank_offset=case.rank_offset)
    _require(0 <= case.seed < 2**64, "a seed from 0 to 2^64 - 1", seed=case.seed)
    exponents = (case.cotangent_exponent, case.affine_exponent)
    _require(all(abs(k) <= 64 for k in exponents), "exponents from -64 to 64", exponents=exponents)
    dims = len(case.spatial[0])
    needs_4d = "channels_last" in (case.input_layout, case.cotangent_layout)
    _require(dims >= 2 or not needs_4d, "two or three spatial sizes for channels_last", spatial=case.spatial)

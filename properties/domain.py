"""What a subject promises: its domain (cases), its contract (conventions), its grade (accuracy).

Plain data: from a factory's `syncbn_verify` dictionary, or from `--domain k=v`, `--contract k=v`, `--grade`.
The keys are a closed list; an unknown key or value raises with the list of the valid ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import structs

from properties.case import Affine, CotangentLayout, Dtype, Family, InputLayout

Grade = Literal["A", "B", "C"]
Layout = Literal["contiguous", "channels_last", "permuted", "sliced", "expanded", "cropped", "split"]
ParamDtype = Literal["float32", "own"]
Groups = Literal["world", "disjoint", "single"]
Empty = Literal["never", "some", "all"]
Epsilon = Literal["positive", "zero"]
Batches = Literal["equal", "uneven"]
Spatial = Literal["equal", "ragged"]
Schedule = Literal["plain", "no_grad", "inference", "twice", "edited", "rewritten", "frozen", "resized"]
Size = Literal["small", "network"]


class Domain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which cases a subject says it supports.

    Attributes:
        dtypes: Input dtypes.
        param_dtypes: Parameters and buffers in float32, or in the input's own dtype.
        dims: Numbers of dimensions of the input.
        world_sizes: Numbers of ranks.
        groups: The whole world, disjoint process groups, groups of a single rank.
        empty: Whether no rank, some ranks, or all ranks may have an empty batch.
        batches: The same batch size on all ranks, or sizes that differ (a rank without samples included).
        spatial: The same spatial sizes on all ranks, or sizes that differ.
        ragged_grad: The input may require a gradient on some ranks of a group only.
        layouts: Memory layouts of input and cotangent (sliced: input only; expanded: cotangent only;
            cropped: rows of longer ones; split: channels of more).
        offsets: Tensors may begin inside their storage.
        eps: Kinds of epsilon. Zero is not in the default: torch's own batch norm refuses it in training.
        momentum_none: momentum=None is supported.
        affine: Weight and bias, weight alone, neither.
        tracking: track_running_stats values.
        counter: There is a num_batches_tracked; without one it is not asked for, and no momentum is None.
        eval: Evaluation mode is supported.
        schedule: What a step may be beside a plain one: without gradients (`no_grad`, `inference`), with a
            backward that runs `twice`, with an output that the caller has `edited` in place, with parameters
            that he has `rewritten` in place or `frozen` for the step, `resized` from the first step's sizes.
        values: Families of input values.
        sizes: Kinds of size. A case is of a network's if a rank holds more than 2^17 elements; such are drawn
            with the shapes of known networks (`properties.generation.networks`), up to 2^21 elements a rank,
            or, where nothing else is drawn, up to 2^25 over all ranks. Of a subject that declares
            `case_seconds` small ones alone, unless it says otherwise.
    """

    dtypes: tuple[Dtype, ...] = get_args(Dtype)
    param_dtypes: tuple[ParamDtype, ...] = get_args(ParamDtype)
    dims: tuple[int, ...] = (2, 3, 4, 5)
    world_sizes: tuple[int, ...] = (1, 2, 3, 4)
    groups: tuple[Groups, ...] = get_args(Groups)
    empty: Empty = "all"
    batches: tuple[Batches, ...] = get_args(Batches)
    spatial: tuple[Spatial, ...] = get_args(Spatial)
    ragged_grad: bool = False
    layouts: tuple[Layout, ...] = get_args(Layout)
    offsets: bool = True
    eps: tuple[Epsilon, ...] = ("positive",)
    momentum_none: bool = True
    affine: tuple[Affine, ...] = get_args(Affine)
    tracking: tuple[bool, ...] = (True, False)
    counter: bool = True
    eval: bool = True
    schedule: tuple[Schedule, ...] = get_args(Schedule)
    values: tuple[Family, ...] = get_args(Family)
    sizes: tuple[Size, ...] = get_args(Size)

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) == ():
                raise DomainError(
                    f"Expected at least one value, but got {name}=(); an empty domain has no case."
                )
        for name, low, high in (("dims", 2, 5), ("world_sizes", 1, 64)):
            if any(not low <= value <= high for value in getattr(self, name)):
                raise DomainError(
                    f"Expected {name} from {low} to {high}, but got {name}={getattr(self, name)!r}."
                )
        if not any(layout != "expanded" for layout in self.layouts) or not any(
            layout != "sliced" for layout in self.layouts
        ):
            raise DomainError(f"Expected a layout for input and cotangent, but got layouts={self.layouts!r}.")
        if self.layouts == ("channels_last",) and max(self.dims) < 4:
            raise DomainError(f"Expected dims of 4 or 5 for channels_last, but got dims={self.dims!r}.")
        if "plain" not in self.schedule:
            raise DomainError(f"Expected plain among the steps, but got schedule={self.schedule!r}.")
        if self.batches == ("uneven",) and max(self.world_sizes) < 2:
            raise DomainError(
                f"Expected 2 or more ranks for uneven batches, but got world_sizes={self.world_sizes!r}."
            )
        if self.spatial == ("ragged",) and (max(self.world_sizes) < 2 or max(self.dims) < 3):
            raise DomainError(
                "Expected 2 or more ranks and dims of 3 or more for ragged spatial sizes, but got "
                f"world_sizes={self.world_sizes!r}, dims={self.dims!r}."
            )
        if self.groups == ("disjoint",) and max(self.world_sizes) < 2:
            raise DomainError(
                f"Expected 2 or more ranks for disjoint groups, but got world_sizes={self.world_sizes!r}."
            )


class Contract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which convention is right; the default is what `torch.nn.BatchNorm*d` does on the concatenated batch.

    Attributes:
        running_var: The unbiased (n - 1) or the biased (n) variance goes into the buffer.
        affine_grad: In training a rank's gradients of weight and bias are its own (local), or the sum or mean
            over the ranks of its group, before any data-parallel wrapper. In evaluation they are its own
            whatever is said here: an evaluation does not communicate.
        momentum: `torch`, weight of the new value; `decay`, weight of the old one.
        buffer_update: `accumulate`, computed in the accumulation dtype and rounded once; `in_dtype`, every
            step rounded in the buffer's dtype.
        accumulate: The accumulation dtype; `default` is float32 for half inputs, else the input's.
        recompute_updates: A forward that `torch.utils.checkpoint` reruns updates the buffers `twice`, as
            `torch.nn.BatchNorm*d` does, or `once`: checkpoint reruns no subject that saves nothing in
            autograd's own way (`ctx.x = x` in place of `ctx.save_for_backward(x)`), and a rerun one may tell.
        deterministic: The same case twice gives the same bits.
        scaling: Weights, biases and cotangents times a power of two scale the results `exact`ly; `no` where
            how a sum is computed depends on its terms (binned and exactly accumulated sums).
        inplace: The subject may write its output over its input, which is then no leaf; its output is then
            left alone by the caller, and its backward runs once.
        memory_format: The output of a contiguous or channels_last input is in that memory format too
            (`preserve`, as torch has it), or in `any`.
        identity: Parameters and buffers stay the same tensors, which others may hold; `no` for a subject that
            puts new ones in their place (`self.running_mean = ...`).
    """

    running_var: Literal["unbiased", "biased"] = "unbiased"
    affine_grad: Literal["local", "sum", "mean"] = "local"
    momentum: Literal["torch", "decay"] = "torch"
    buffer_update: Literal["accumulate", "in_dtype"] = "accumulate"
    accumulate: Literal["default", "float32", "float64"] = "default"
    recompute_updates: Literal["twice", "once"] = "twice"
    deterministic: bool = True
    scaling: Literal["exact", "no"] = "exact"
    inplace: bool = False
    memory_format: Literal["preserve", "any"] = "preserve"
    identity: bool = True


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What a subject promises.

    Attributes:
        domain, contract, grade: Which cases it supports, which convention is right, how accurate it must be.
        known: The path of its file of known discrepancies, or empty.
        case_seconds: Seconds that one small case may take on the ranks; None for the usual time.
    """

    domain: Domain = Domain()
    contract: Contract = Contract()
    grade: Grade = "A"
    known: str = ""
    case_seconds: float | None = None


def for_slow(promise: Promise, case_seconds: float, *, keep_sizes: bool) -> Promise:
    """Return the promise of a subject whose small cases may take so long.

    One of a network's size would take it hours, so that such are not drawn unless asked for (`keep_sizes`).
    """
    if not keep_sizes and "small" in promise.domain.sizes:
        promise = structs.replace(promise, domain=structs.replace(promise.domain, sizes=("small",)))
    return structs.replace(promise, case_seconds=case_seconds)


class DomainError(ValueError):
    """A domain, contract or grade that does not exist; the message lists what does."""


def promise_from(data: Mapping[str, Any]) -> Promise:
    """Return the promise in a factory's `syncbn_verify` dictionary.

    Raises:
        DomainError: On an unknown key or value, with the valid ones.
    """
    _check_keys(data, ("domain", "contract", "grade", "known", "case_seconds"), "syncbn_verify")
    grade = data.get("grade", "A")
    if grade not in get_args(Grade):
        raise DomainError(f"Expected a grade among A, B, C, but got grade={grade!r}.")
    seconds = data.get("case_seconds")
    if seconds is not None and not (type(seconds) in (int, float) and 0 < seconds < 1e6):
        raise DomainError(f"Expected seconds above 0, but got case_seconds={seconds!r}.")
    domain = data.get("domain", {})
    promise = Promise(
        domain=_convert(domain, Domain, "domain"),
        contract=_convert(data.get("contract", {}), Contract, "contract"),
        grade=grade,
        known=str(data.get("known", "")),
    )
    return promise if seconds is None else for_slow(promise, seconds, keep_sizes="sizes" in domain)


def override(
    promise: Promise, *, domain: Mapping[str, str], contract: Mapping[str, str], grade: str | None
) -> Promise:
    """Return `promise` with the settings of a command line, each a text (lists are comma-separated).

    Raises:
        DomainError: On an unknown key or value, with the valid ones.
    """
    merged_domain = _builtins(promise.domain) | {k: _parse(Domain, k, v, "domain") for k, v in domain.items()}
    merged_contract = _builtins(promise.contract) | {
        k: _parse(Contract, k, v, "contract") for k, v in contract.items()
    }
    return promise_from(
        {
            "domain": merged_domain,
            "contract": merged_contract,
            "grade": grade or promise.grade,
            "known": promise.known,
            "case_seconds": promise.case_seconds,
        }
    )


def keys_text(kind: type[Domain] | type[Contract]) -> str:
    """Return one line a key of `kind`, with its values and default, for `--help`."""
    default = kind()
    lines = []
    for name, hint in get_type_hints(kind).items():
        if name.startswith("__"):
            continue
        lines.append(f"{name}={_choices_text(hint)} (default {_value_text(getattr(default, name))})")
    return "\n".join(lines)


def _builtins(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _convert(data: Any, kind: type[Any], what: str) -> Any:
    if not isinstance(data, Mapping):
        raise DomainError(f"Expected {what} to be a dictionary, but got {what}={data!r}.")
    _check_keys(data, kind.__struct_fields__, what)
    values = {}
    for key, value in data.items():
        hint = get_type_hints(kind)[key]
        wrapped = (value,) if "tuple" in str(hint) and isinstance(value, str | int | bool) else value
        try:
            values[key] = msgspec.convert(wrapped, hint)
        except msgspec.ValidationError:
            raise DomainError(
                f"Expected {what} {key}={_choices_text(hint)}, but got {key}={value!r}."
            ) from None
    return kind(**values)


def _check_keys(data: Mapping[str, Any], valid: tuple[str, ...], what: str) -> None:
    for key in data:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DomainError(f"Expected a {what} key among {', '.join(valid)}, but got {key!r}.{hint}")


def _parse(kind: type[Any], key: str, text: str, what: str) -> Any:
    _check_keys({key: text}, kind.__struct_fields__, what)
    hint = get_type_hints(kind)[key]
    items = [_scalar(item.strip(), hint) for item in text.split(",")]
    if "tuple" in str(hint):
        return tuple(items)
    return items[0] if len(items) == 1 else text


def _scalar(text: str, hint: Any) -> Any:
    if text in get_args(hint):  # a "no" that is one of several words
        return text
    if text in ("yes", "true", "no", "false"):
        return text in ("yes", "true")
    return int(text) if text.isdecimal() else text


def _choices_text(hint: Any) -> str:
    arguments = get_args(hint)
    if hint is bool:
        return "yes|no"
    if hint is int:
        return "number"
    if arguments and arguments[-1] is Ellipsis:
        return _choices_text(arguments[0]) + ",..."
    return "|".join(str(a) for a in arguments) if arguments else str(hint)


def _value_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_value_text(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def layouts_of(domain: Domain) -> tuple[tuple[InputLayout, ...], tuple[CotangentLayout, ...]]:
    """Return the input layouts and the cotangent layouts that `domain` admits."""
    inputs = tuple(layout for layout in domain.layouts if layout != "expanded")
    cotangents = tuple(layout for layout in domain.layouts if layout != "sliced")
    return inputs, cotangents

"""Masked faults: torch's SyncBatchNorm with a fault on top, only where a known discrepancy of it is at work.

They measure that an excuse is no hiding place: a known discrepancy excuses what its mechanism predicts, and
none of these is predicted. A mask says where the fault acts, a damage what it does there; each factory below
is a pair of them. Where a mask depends on other ranks, the ranks agree on it with a collective of their own,
the same on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.subjects.channels import columns
from verify.subjects.torch_syncbn import SyncBatchNorm

_HALF = (torch.float16, torch.bfloat16)
_EXACT = {torch.bfloat16: 256, torch.float16: 2048}
"""Integers up to which a half dtype holds all."""


def _group_size(module: Any) -> int:
    if not dist.is_initialized():
        return 1
    group = module.process_group
    return int(dist.get_world_size(group if group is not None else dist.group.WORLD))


def _agreed(module: Any, own: Tensor, op: Any) -> Tensor:
    """Return `own` (float64) reduced over the ranks of the group."""
    total = own.double()
    if _group_size(module) > 1:
        dist.all_reduce(total, op=op, group=module.process_group)
    return total


def _synchronised(module: Any, x: Tensor) -> bool:
    return module.training and _group_size(module) > 1


def _count(module: Any, x: Tensor) -> float:
    return float(_agreed(module, torch.tensor(x.numel() / x.shape[1]), dist.ReduceOp.SUM))


def _half_parameters(module: Any, x: Tensor) -> bool:
    tensors = (module.weight, module.running_mean)
    return x.dtype in _HALF and all(tensor is None or tensor.dtype == x.dtype for tensor in tensors)


def _strided(tensor: Tensor | None) -> bool:
    formats = [torch.contiguous_format]
    if tensor is not None and tensor.dim() in (4, 5):
        formats.append(torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)
    return tensor is not None and not any(tensor.is_contiguous(memory_format=layout) for layout in formats)


def empty_batch(module: Any, x: Tensor) -> bool:
    """Return whether no rank has a value, in training."""
    return _synchronised(module, x) and module.track_running_stats and _count(module, x) == 0


def zero_variance(module: Any, x: Tensor) -> bool:
    """Return whether eps is 0 and on some rank every channel's values are equal, in training."""
    if not _synchronised(module, x) or module.eps != 0:
        return False
    data = columns(x)
    own = data.shape[1] > 0 and bool((data == data[:, :1]).all())
    return bool(_agreed(module, torch.tensor(float(own)), dist.ReduceOp.MAX))


def small_variance(module: Any, x: Tensor) -> bool:
    """Return whether every rank's variance is far below eps, in training with buffers."""
    if not _synchronised(module, x) or module.eps == 0 or not module.track_running_stats:
        return False
    data = columns(x)
    spread = data.amax(1) - data.amin(1) if data.shape[1] else data.new_zeros(1)
    far = bool((spread.double().square() < 0.05 * module.eps).all())
    return bool(_agreed(module, torch.tensor(float(not far)), dist.ReduceOp.MAX) == 0)


def rounded_counts(module: Any, x: Tensor) -> bool:
    """Return whether the counts exceed what the buffers' half dtype holds, in training."""
    if not _synchronised(module, x) or module.running_mean is None:
        return False
    largest = _EXACT.get(module.running_mean.dtype)
    return largest is not None and _count(module, x) > largest


def single_value(module: Any, x: Tensor) -> bool:
    """Return whether the group has one value a channel, in training."""
    return _synchronised(module, x) and _count(module, x) == 1


def half_statistics(module: Any, x: Tensor) -> bool:
    """Return whether a half batch is normalised by itself without float32 parameters."""
    alone = _group_size(module) == 1 if module.training else module.running_mean is None
    return alone and _half_parameters(module, x)


def half_evaluation(module: Any, x: Tensor) -> bool:
    """Return whether half buffers evaluate an input by its strides."""
    evaluates = not module.training and module.running_mean is not None
    return evaluates and _half_parameters(module, x) and (_strided(x) or _strided(module.running_mean))


def half_sums(module: Any, x: Tensor) -> bool:
    """Return whether a strided half input has its backward without other ranks."""
    return x.dtype in _HALF and _strided(x) and (not module.training or _group_size(module) == 1)


def half_partial_sums(module: Any, x: Tensor) -> bool:
    """Return whether a half input has its synchronised backward in blocks that sum over positions."""
    return x.dtype in _HALF and _synchronised(module, x) and x.dim() > 2 and x[:, 0].numel() > len(x)


def sequential_sums(module: Any, x: Tensor) -> bool:
    """Return whether float32 values are added up one by one without other ranks."""
    alone = _group_size(module) == 1 if module.training else module.running_mean is None
    positions = x[0, 0].numel() if x.numel() else 0
    return alone and x.dtype is torch.float32 and positions == 1 and x.shape[0] > 256


def sequential_backward(module: Any, x: Tensor) -> bool:
    """Return whether the backward adds float32 gradients up one by one, in evaluation."""
    positions = x[0, 0].numel() if x.numel() else 0
    return not module.training and x.dtype is torch.float32 and positions == 1 and x.shape[0] > 128


def evaluation(module: Any, x: Tensor) -> bool:
    """Return whether buffers evaluate; the damages of stale buffers ask whether they have changed since."""
    return not module.training and module.running_mean is not None


def doubled(tensor: Tensor) -> Tensor:
    """Return twice the tensor."""
    return tensor * 2


def zero(tensor: Tensor) -> Tensor:
    """Return zeros."""
    return torch.zeros_like(tensor)


def negated(tensor: Tensor) -> Tensor:
    """Return the tensor with its sign changed."""
    return -tensor


def seven(tensor: Tensor) -> Tensor:
    """Return sevens."""
    return torch.full_like(tensor, 7.0)


def far(tensor: Tensor) -> Tensor:
    """Return 60000 everywhere."""
    return torch.full_like(tensor, 60000.0)


def half_more(tensor: Tensor) -> Tensor:
    """Return one and a half times the tensor."""
    return tensor * 1.5


def halved(tensor: Tensor) -> Tensor:
    """Return half the tensor."""
    return tensor * 0.5


def shifted(tensor: Tensor) -> Tensor:
    """Return the tensor plus 1."""
    return tensor + 1


def slightly_more(tensor: Tensor) -> Tensor:
    """Return the tensor times 1.01."""
    return tensor * 1.01


def not_a_number(tensor: Tensor) -> Tensor:
    """Return NaN everywhere."""
    return torch.full_like(tensor, float("nan"))


def first_wrong(tensor: Tensor) -> Tensor:
    """Return the tensor with its first sample shifted."""
    changed = tensor.clone()
    changed[:1] += 1
    return changed


Damage = Callable[[Tensor], Tensor]


class _Twist(torch.autograd.Function):
    """The identity, whose gradient is damaged where the fault acts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, acts: Callable[[], bool], damage: Damage) -> Tensor:
        ctx.acts, ctx.damage = acts, damage
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.damage(grad) if ctx.acts() else grad, None, None


@dataclass(slots=True)
class _Fault:
    """One fault on one module.

    Attributes:
        mask: Where it acts.
        quantity: What is damaged: output, grad_input, weight, bias, running_mean or running_var.
        damage: How.
        stale: It acts only in a backward before which the buffers have changed.
    """

    mask: Callable[[Any, Tensor], bool]
    quantity: str
    damage: Damage
    stale: bool = False
    acts: bool = False
    hooked: set[int] = field(default_factory=set)
    seen: Tensor | None = None

    def before(self, module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Find out whether the fault acts, and lay the gradient's damage."""
        (x,) = inputs
        fits = x.dim() >= 2 and x.is_floating_point() and x.shape[1] == module.num_features
        self.acts = fits and self.mask(module, x)
        parameter: Any = getattr(module, self.quantity, None)
        trained = isinstance(parameter, torch.nn.Parameter) and parameter.requires_grad and fits
        if trained and id(parameter) not in self.hooked:
            self.hooked.add(id(parameter))
            parameter.register_hook(lambda grad: self.trained(module, grad))
        if self.stale and self.acts:
            self.seen = module.running_mean.clone()
        if self.quantity == "grad_input" and self.acts and x.requires_grad:
            acts = (lambda: self.acting(module)) if self.stale else (lambda: True)
            return (_Twist.apply(x, acts, self.damage),)
        return None

    def trained(self, module: Any, grad: Tensor | None) -> Tensor | None:
        """Return a parameter's gradient, damaged; a rank without values has none."""
        return self.damage(grad) if grad is not None and self.acting(module) else grad

    def acting(self, module: Any) -> bool:
        """Return whether the damage is done in this backward."""
        if not self.stale:
            return self.acts
        return self.seen is not None and not torch.equal(self.seen, module.running_mean)

    def after(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Damage the output or a buffer."""
        del inputs
        if not self.acts:
            return None
        if self.quantity.startswith("running"):
            buffer = getattr(module, self.quantity)
            if buffer is not None:
                buffer.copy_(self.damage(buffer))
            return None
        return self.damage(output) if self.quantity == "output" else None


def _factory(mask: Any, quantity: str, damage: Damage, domain: dict[str, Any], *, stale: bool) -> Any:
    def make(
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> Any:
        module = SyncBatchNorm(
            num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype, bias=bias
        )
        fault = _Fault(mask, quantity, damage, stale)
        module.register_forward_pre_hook(fault.before)
        module.register_forward_hook(fault.after)
        return module

    make.syncbn_verify = {"known": "../subjects/known/torch.toml", "domain": domain}  # type: ignore[attr-defined]
    return make


_HALVES = ["float16", "bfloat16"]
_ALONE = {"dtypes": _HALVES, "param_dtypes": ["own"], "groups": ["single"]}
MASKS: dict[str, tuple[Any, dict[str, Any], tuple[tuple[str, Damage], ...]]] = {
    "EmptyBatch": (
        empty_batch,
        {"world_sizes": [2, 3], "dtypes": ["float32", "float64"], "tracking": [True], "groups": ["world"]},
        (
            *(("running_mean", far), ("running_mean", shifted), ("running_mean", not_a_number)),
            *(("running_var", half_more), ("running_var", far), ("running_var", negated)),
        ),
    ),
    "ZeroVariance": (
        zero_variance,
        {"world_sizes": [2, 3], "values": ["constant"], "groups": ["world"], "eps": ["zero"]},
        (
            *(("output", seven), ("output", shifted), ("output", not_a_number)),
            *(("grad_input", seven), ("running_mean", far), ("running_var", seven)),
        ),
    ),
    "SmallVariance": (
        small_variance,
        {"world_sizes": [2, 3], "values": ["tiny_spread"], "groups": ["world"], "dtypes": ["float32"]},
        (
            *(("running_var", half_more), ("running_var", halved), ("running_var", negated)),
            *(("running_var", shifted), ("output", slightly_more), ("running_mean", half_more)),
        ),
    ),
    "RoundedCounts": (
        rounded_counts,
        {
            "world_sizes": [2, 3],
            "dtypes": _HALVES,
            "param_dtypes": ["own"],
            "tracking": [True],
            "groups": ["world"],
        },
        (
            *(("output", doubled), ("output", first_wrong), ("grad_input", zero)),
            *(("weight", doubled), ("running_mean", shifted), ("running_var", half_more)),
        ),
    ),
    "SingleValue": (
        single_value,
        {"world_sizes": [2, 3], "groups": ["world"], "dtypes": ["float32", "float64"]},
        (
            *(("output", seven), ("output", not_a_number), ("grad_input", seven)),
            *(("weight", seven), ("bias", doubled), ("running_mean", shifted)),
        ),
    ),
    "HalfStatistics": (
        half_statistics,
        _ALONE,
        (
            *(("output", doubled), ("output", first_wrong), ("grad_input", negated)),
            *(("weight", doubled), ("running_mean", shifted), ("running_var", half_more)),
        ),
    ),
    "HalfEvaluation": (
        half_evaluation,
        {"dtypes": _HALVES, "param_dtypes": ["own"], "tracking": [True], "layouts": ["permuted", "sliced"]},
        (
            *(("output", doubled), ("output", first_wrong), ("output", negated)),
            *(("output", shifted), ("output", seven), ("grad_input", negated)),
        ),
    ),
    "HalfSums": (
        half_sums,
        {"dtypes": _HALVES, "groups": ["single"], "layouts": ["permuted", "sliced"]},
        (
            *(("grad_input", negated), ("grad_input", zero), ("grad_input", doubled)),
            *(("weight", doubled), ("bias", zero), ("weight", negated)),
        ),
    ),
    "HalfPartialSums": (
        half_partial_sums,
        {"world_sizes": [2, 3], "dtypes": _HALVES, "groups": ["world"], "layouts": ["contiguous"]},
        (
            *(("grad_input", negated), ("grad_input", zero), ("grad_input", doubled)),
            *(("weight", doubled), ("bias", half_more), ("bias", zero)),
        ),
    ),
    "SequentialSums": (
        sequential_sums,
        {"dtypes": ["float32"], "dims": [2], "groups": ["single"]},
        (
            *(("output", slightly_more), ("output", first_wrong), ("grad_input", zero)),
            *(("weight", doubled), ("running_mean", shifted), ("running_var", slightly_more)),
        ),
    ),
    "SequentialBackward": (
        sequential_backward,
        {"dtypes": ["float32"], "dims": [2], "groups": ["world", "single"]},
        (("weight", doubled), ("bias", half_more), ("bias", zero)),
    ),
    "StaleBuffers": (
        evaluation,
        {"tracking": [True], "dtypes": ["float32", "float64"]},
        (
            *(("grad_input", zero), ("grad_input", negated), ("grad_input", doubled)),
            *(("grad_input", shifted), ("weight", doubled), ("weight", zero)),
        ),
    ),
}
"""By name: the mask, the domain in which it often holds, and the quantities with their damages."""

for _name, (_mask, _domain, _damages) in MASKS.items():
    for _quantity, _damage in _damages:
        _words = f"{_quantity}_{_damage.__name__}".split("_")
        globals()[_name + "".join(word.capitalize() for word in _words)] = _factory(
            _mask, _quantity, _damage, _domain, stale=_name == "StaleBuffers"
        )

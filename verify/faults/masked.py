"""Masked faults: torch's SyncBatchNorm with a fault on top, only where a known discrepancy of it is at work.

They measure that an excuse is no hiding place: a known discrepancy excuses what its mechanism predicts, and
none of these is predicted. A mask says where the fault acts, a damage what it does there; each factory below
is a pair of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from verify.faults import masks
from verify.subjects.torch_syncbn import SyncBatchNorm


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
        masks.empty_batch,
        {"world_sizes": [2, 3], "dtypes": ["float32", "float64"], "tracking": [True], "groups": ["world"]},
        (
            *(("running_mean", far), ("running_mean", shifted), ("running_mean", not_a_number)),
            *(("running_var", half_more), ("running_var", far), ("running_var", negated)),
        ),
    ),
    "ZeroVariance": (
        masks.zero_variance,
        {"world_sizes": [2, 3], "values": ["constant"], "groups": ["world"], "eps": ["zero"]},
        (
            *(("output", seven), ("output", shifted), ("output", not_a_number)),
            *(("grad_input", seven), ("running_mean", far), ("running_var", seven)),
        ),
    ),
    "SmallVariance": (
        masks.small_variance,
        {"world_sizes": [2, 3], "values": ["tiny_spread"], "groups": ["world"], "dtypes": ["float32"]},
        (
            *(("running_var", half_more), ("running_var", halved), ("running_var", negated)),
            *(("running_var", shifted), ("output", slightly_more), ("running_mean", half_more)),
        ),
    ),
    "RoundedCounts": (
        masks.rounded_counts,
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
        masks.single_value,
        {"world_sizes": [2, 3], "groups": ["world"], "dtypes": ["float32", "float64"]},
        (
            *(("output", seven), ("output", not_a_number), ("grad_input", seven)),
            *(("weight", seven), ("bias", doubled), ("running_mean", shifted)),
        ),
    ),
    "HalfStatistics": (
        masks.half_statistics,
        _ALONE,
        (
            *(("output", doubled), ("output", first_wrong), ("grad_input", negated)),
            *(("weight", doubled), ("running_mean", shifted), ("running_var", half_more)),
        ),
    ),
    "HalfEvaluation": (
        masks.half_evaluation,
        {"dtypes": _HALVES, "param_dtypes": ["own"], "tracking": [True], "layouts": ["permuted", "sliced"]},
        (
            *(("output", doubled), ("output", first_wrong), ("output", negated)),
            *(("output", shifted), ("output", seven), ("grad_input", negated)),
        ),
    ),
    "HalfSums": (
        masks.half_sums,
        {"dtypes": _HALVES, "groups": ["single"], "layouts": ["permuted", "sliced"]},
        (
            *(("grad_input", negated), ("grad_input", zero), ("grad_input", doubled)),
            *(("weight", doubled), ("bias", zero), ("weight", negated)),
        ),
    ),
    "HalfPartialSums": (
        masks.half_partial_sums,
        {"world_sizes": [2, 3], "dtypes": _HALVES, "groups": ["world"], "layouts": ["contiguous"]},
        (
            *(("grad_input", negated), ("grad_input", zero), ("grad_input", doubled)),
            *(("weight", doubled), ("bias", half_more), ("bias", zero)),
        ),
    ),
    "SequentialSums": (
        masks.sequential_sums,
        {"dtypes": ["float32"], "dims": [2], "groups": ["single"]},
        (
            *(("output", slightly_more), ("output", first_wrong), ("grad_input", zero)),
            *(("weight", doubled), ("running_mean", shifted), ("running_var", slightly_more)),
        ),
    ),
    "SequentialBackward": (
        masks.sequential_backward,
        {"dtypes": ["float32"], "dims": [2], "groups": ["world", "single"]},
        (
            *(("weight", doubled), ("weight", negated), ("grad_input", zero)),
            *(("bias", half_more), ("bias", zero), ("bias", negated)),
        ),
    ),
    "StaleBuffers": (
        masks.evaluation,
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

"""Conventions: settings of a contract that the diagnosis tries before it looks for a fault."""

from __future__ import annotations

CONVENTIONS: tuple[dict[str, str], ...] = (
    {"running_var": "biased"},
    {"momentum": "decay"},
    {"affine_grad": "sum"},
    {"affine_grad": "mean"},
    {"buffer_update": "in_dtype"},
    {"recompute_updates": "once"},
    {"running_var": "biased", "momentum": "decay"},
)
FORMS: dict[str, tuple[str, str]] = {
    "dtype_and_layout": ("memory_format", "any"),
    "identity": ("identity", "no"),
}
"""Settings of a contract that only say which form tensors have, by the property that asks for it."""
CONVENTION_CLASSES = {
    "running_var": (7,),
    "momentum": (17,),
    "affine_grad": (6,),
    "buffer_update": (13,),
    "recompute_updates": (24,),
}
"""Fault classes that a change of the contract belongs to, by its key."""

"""Building: a subject's module for one case, with the case's parameters and buffers in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from properties.case import Case
from properties.values.elements import affine, parameters
from verify.ranks.worker.loader import Factory
from verify.ranks.worker.memory_layouts import dtype_of, strided


def build(
    case: Case, factory: Factory, *, keywords: tuple[str, ...], device: torch.device, group: Any
) -> torch.nn.Module:
    """Return the module that `factory` makes for `case`.

    Only `keywords` are passed. Parameters and buffers are copied in, each in the dtype it was built with; a
    factory that takes no device or dtype has its module moved.

    Raises:
        TypeError: If the factory returns no module, or one without a parameter or buffer that the case asks
        for.
    """
    arguments = {
        "eps": case.eps,
        "momentum": case.momentum,
        "affine": case.has_weight,
        "track_running_stats": case.tracking,
        "process_group": group,
        "device": device,
        "dtype": dtype_of(case.param_dtype),
        "bias": case.has_bias,
    }
    module = factory(case.channels, **{name: arguments[name] for name in keywords})
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"Expected the factory to return a torch.nn.Module, but it returned {_kind(module)}.")
    if "device" not in keywords:
        module.to(device=device)
    if "dtype" not in keywords:
        module.to(dtype=dtype_of(case.param_dtype))
    _fill(case, module)
    return module


def _fill(case: Case, module: torch.nn.Module) -> None:
    values = parameters(case)
    with torch.no_grad():
        if case.has_weight:
            _copy(module, "weight", values.weight)
        if case.has_bias:
            _copy(module, "bias", values.bias)
        if case.tracking:
            for name, array in (("running_mean", values.running_mean), ("running_var", values.running_var)):
                buffer = _copy(module, name, array)
                if case.strided_buffers:
                    setattr(module, name, strided(buffer))
    for name in case.frozen:
        parameter = getattr(module, name, None)
        if isinstance(parameter, torch.Tensor):
            parameter.requires_grad_(requires_grad=False)


def freeze(case: Case, module: torch.nn.Module, *, step: int) -> None:
    """Freeze weight and bias if `step` does; if the one before it did, have them require a gradient again."""
    frozen = case.steps[step].frozen
    if frozen or (step and case.steps[step - 1].frozen):
        for name in {"weight", "bias"}.difference(case.frozen):
            parameter = getattr(module, name, None)
            if isinstance(parameter, torch.Tensor) and parameter.is_leaf:
                parameter.requires_grad_(not frozen)


def rewrite(case: Case, module: torch.nn.Module, *, step: int) -> None:
    """Write the values of weight and bias in `step` into those of `module`."""
    weight, bias = affine(case, step)
    with torch.no_grad():
        if case.has_weight:
            _copy(module, "weight", weight)
        if case.has_bias:
            _copy(module, "bias", bias)


def _copy(module: torch.nn.Module, name: str, values: NDArray[np.float64]) -> torch.Tensor:
    tensor = getattr(module, name, None)
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != values.shape:
        found = f"shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else _kind(tensor)
        raise TypeError(f"Expected a tensor {name} of shape {values.shape} in the subject, but got {found}.")
    return tensor.copy_(torch.from_numpy(values))


def _kind(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__qualname__}"

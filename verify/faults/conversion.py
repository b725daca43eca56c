"""Faults of `convert_sync_batchnorm`: the converted layers are right, the conversion is not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from verify.subjects.aggregated import Aggregated
from verify.subjects.converting import Converter

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class _ForgetsGroup(Converter):
    def convert(self, module: nn.Module) -> nn.Module:
        nested = bool(self._done)
        new = super().convert(module)
        if nested and type(module) is not type(new):
            vars(new)["process_group"] = None
        return new


class NestedWithoutGroup(Aggregated):
    """Passes the process group on to the root only, not to what is nested in it."""

    converter = _ForgetsGroup


class _Trains(Converter):
    def replacement(self, module: nn.Module) -> nn.Module:
        return super().replacement(module).requires_grad_()


class FrozenBecomesTrained(Aggregated):
    """Converted parameters always require a gradient."""

    converter = _Trains


class _Clones(Converter):
    def replacement(self, module: nn.Module) -> nn.Module:
        new = super().replacement(module)
        for name, old in module.named_parameters():
            new._parameters[name] = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
        return new


class ParametersCloned(Aggregated):
    """Gives the new layer parameters of its own; an optimizer holds the old ones."""

    converter = _Clones


class _StartsTraining(Converter):
    def replacement(self, module: nn.Module) -> nn.Module:
        return super().replacement(module).train()


class EvaluationBecomesTraining(Aggregated):
    """A converted layer is in training mode."""

    converter = _StartsTraining


class _AnySubclass(Converter):
    def replaces(self, module: nn.Module) -> bool:
        return isinstance(module, _BatchNorm) and not isinstance(module, Aggregated)


class SubclassReplaced(Aggregated):
    """Replaces subclasses of batch norm, whatever else they do."""

    converter = _AnySubclass


class _AnyNorm(Converter):
    def replaces(self, module: nn.Module) -> bool:
        return super().replaces(module) or (
            isinstance(module, _NormBase) and not isinstance(module, _BatchNorm)
        )


class InstanceNormReplaced(Aggregated):
    """Replaces instance norm, too."""

    converter = _AnyNorm


class _DropsAttribute(Converter):
    def replacement(self, module: nn.Module) -> nn.Module:
        new = super().replacement(module)
        vars(new).pop("qconfig", None)
        return new


class AttributeLost(Aggregated):
    """Does not take over an attribute that a later pass looks for."""

    converter = _DropsAttribute


class _EachOnce(Converter):
    def children(self, module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        return list(module.named_children())


class SharedConvertedOnce(Aggregated):
    """Converts a layer that its parent has under two names under the first only."""

    converter = _EachOnce


class _NoMemory(Converter):
    def convert(self, module: nn.Module) -> nn.Module:
        self._done.clear()
        new = self.replacement(module) if self.replaces(module) else module
        for name, child in self.children(module):
            new._modules[name] = self.convert(child)
        return new


class SharedSplit(Aggregated):
    """Makes two layers of one that is in the tree twice."""

    converter = _NoMemory


class _Again(Converter):
    def convert(self, module: nn.Module) -> nn.Module:
        if isinstance(module, Aggregated):
            module.process_group = self.process_group
        return super().convert(module)


class GroupReset(Aggregated):
    """Gives a layer that is synchronized already the process group of the call."""

    converter = _Again


class _DropsHooks(Converter):
    def replacement(self, module: nn.Module) -> nn.Module:
        new = super().replacement(module)
        vars(new).update({name: type(getattr(module, name))() for name in _HOOKS})
        return new


class HooksLost(Aggregated):
    """Does not take over the layer's hooks."""

    converter = _DropsHooks


class _DropsCount(Converter):
    def replacement(self, module: nn.Module) -> nn.Module:
        new = super().replacement(module)
        if module.num_batches_tracked is not None:
            new._buffers["num_batches_tracked"] = torch.zeros_like(module.num_batches_tracked)
        return new


class CountLost(Aggregated):
    """Sets the count of batches back to zero."""

    converter = _DropsCount


class _DefaultOptions(Converter):
    def replacement(self, module: nn.Module) -> nn.Module:
        new = super().replacement(module)
        vars(new)["momentum"] = module.momentum or 0.1
        return new


class MomentumNoneLost(Aggregated):
    """Takes a momentum of None for one that was not given."""

    converter = _DefaultOptions


class _NeedsWeight(Converter):
    def replacement(self, module: nn.Module) -> nn.Module:
        new = super().replacement(module)
        new.weight.data = module.weight.data
        return new


class BareCrashes(Aggregated):
    """Raises where there is no weight."""

    converter = _NeedsWeight

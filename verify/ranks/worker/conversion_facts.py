"""Conversion: a small tree of modules, converted by the subject, and what it looks like before and after.

Rules
-----
- Facts are plain strings, each named by when, aspect and place: `before eps of plain`, `after eps of plain`.
  A place is a name in the tree from its item on (`shared.b`), whatever the item is nested in.
- Objects are named by the place where they were first seen, so that one object under two places shows, and
  what appears afterwards is `a new object`.
- No verdict is made here; `properties.judge.module_conversion` judges.

A case's seed says which items the tree has: below `TREE_ITEMS` that one alone, else three in four of
them, some nested deeper, to be converted with a process group or with none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from properties.probe import TREE_ITEMS
from verify.ranks.worker.exceptions import describe
from verify.ranks.worker.loader import KEYWORDS, Factory, converter

_FEATURES = 3
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OPTIONS = ("num_features", "eps", "momentum", "affine", "track_running_stats", "training", "qconfig")
_PARAMETERS = ("weight", "bias")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class ActiveBatchNorm(nn.BatchNorm2d):  # type: ignore[misc]
    """A batch norm that is more than one: an activation follows it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the normalised input where it is positive, else 0."""
        return torch.relu(super().forward(input))


def _hooked() -> nn.Module:
    module = nn.BatchNorm1d(_FEATURES)
    module.register_forward_pre_hook(lambda *_: None)
    module.register_forward_hook(lambda *_: None)
    module.register_full_backward_hook(lambda *_: None)
    return module


def _frozen() -> nn.Module:
    return nn.BatchNorm1d(_FEATURES).requires_grad_(requires_grad=False)


def _noted() -> nn.Module:
    module = nn.BatchNorm2d(_FEATURES)
    module.qconfig = "eight bits"
    return module


def _shared() -> nn.Module:
    layer = nn.BatchNorm2d(_FEATURES)
    return nn.ModuleDict({"a": layer, "b": layer})


def _tied() -> nn.Module:
    layer = nn.BatchNorm2d(_FEATURES)
    return nn.ModuleDict({"left": nn.Sequential(layer), "right": nn.Sequential(layer)})


_ITEMS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.BatchNorm2d(_FEATURES),
    "options": lambda: nn.BatchNorm1d(_FEATURES, eps=0.02, momentum=0.3),
    "frozen": _frozen,
    "evaluating": lambda: nn.BatchNorm2d(_FEATURES).eval(),
    "bare": lambda: nn.BatchNorm3d(_FEATURES, affine=False),
    "cumulative": lambda: nn.BatchNorm2d(_FEATURES, momentum=None),
    "untracked": lambda: nn.BatchNorm2d(_FEATURES, track_running_stats=False),
    "low_precision": lambda: nn.BatchNorm2d(_FEATURES).half(),
    "nested": lambda: nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(_FEATURES), nn.ReLU())),
    "shared": _shared,
    "tied": _tied,
    "hooked": _hooked,
    "noted": _noted,
    "active": lambda: ActiveBatchNorm(_FEATURES),
    "instance": lambda: nn.InstanceNorm2d(_FEATURES, affine=True, track_running_stats=True),
}
_CONVERTED = "converted"
_ENDING = "after ending of the call"


def facts(seed: int, factory: Factory, *, group: Any, keywords: tuple[str, ...] = KEYWORDS) -> dict[str, str]:
    """Return what is to be told of the tree of `seed` before and after `factory` has converted it.

    Args:
        seed: Of the case.
        factory: The subject; it is not asked, and nothing is told, if it offers no conversion.
        group: This rank's process group of the case; None for the default one.
        keywords: That the factory accepts.
    """
    convert = converter(factory)
    if convert is None:
        return {}
    bits = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "big")
    given = None if seed >= TREE_ITEMS and bits & 1 else group or dist.group.WORLD
    look = _Look(given)
    found = {"before process_group of the call": look.group(given)}
    try:
        own = _converted(factory, keywords)
    except BaseException as error:  # Whatever leaves the subject's code.
        return found | {_ENDING: _told(error)}
    tree = _tree(seed, bits >> 1, own)
    found |= look.before(tree)
    try:
        after = convert(tree, process_group=given)
    except BaseException as error:
        return found | {_ENDING: _told(error)}
    if not isinstance(after, nn.Module):
        return found | {_ENDING: f"an object of type {type(after).__qualname__}"}
    return found | look.at(after, "after") | {_ENDING: "returned"}


def _told(error: BaseException) -> str:
    raised = describe(error, "conversion")
    return f"{raised.type}: {raised.message}"


def _tree(seed: int, bits: int, converted: nn.Module) -> nn.Module:
    """Return the tree: its items by name, with parameters and buffers of their own."""
    names = [*_ITEMS, _CONVERTED]
    chosen = (
        [names[seed]] if seed < TREE_ITEMS else [name for k, name in enumerate(names) if bits >> 2 * k & 3]
    )
    root = nn.Sequential()
    for index, name in enumerate(chosen):
        item = _ITEMS[name]() if name in _ITEMS else converted
        if seed >= TREE_ITEMS and bits >> (2 * TREE_ITEMS + index) & 1:
            block = nn.Sequential()
            block.add_module(name, item)
            root.add_module(f"block{index}", block)
        else:
            root.add_module(name, item)
    with torch.no_grad():
        for k, tensor in enumerate([*root.parameters(), *root.buffers()]):
            tensor.copy_(torch.arange(1, tensor.numel() + 1).view(tensor.shape) + k % 7)
    return root


def _converted(factory: Factory, keywords: tuple[str, ...]) -> Any:
    """Return a layer that needs no conversion, over all ranks if it can be said."""
    if "process_group" not in keywords:
        return factory(_FEATURES)
    return factory(_FEATURES, process_group=dist.group.WORLD)


class _Look:
    """What can be seen of a tree; it remembers the objects that it has seen before."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._modules: dict[str, nn.Module] = {}
        self._objects: dict[int, tuple[str, object]] = {}

    def before(self, tree: nn.Module) -> dict[str, str]:
        """Return the facts about `tree`, and remember its modules, parameters and hooks."""
        self._modules = dict(tree.named_modules(remove_duplicate=False))
        for name, module in self._modules.items():
            for what, value in _objects(module):
                self._objects.setdefault(id(value), (f"{what} of {_place(name)}", value))
        return self.at(tree, "before")

    def at(self, tree: nn.Module, when: str) -> dict[str, str]:
        """Return the facts about those modules of `tree` that were there before."""
        modules = dict(tree.named_modules(remove_duplicate=False))
        found = {f"{when} names of the tree": ", ".join(name for name in modules if name in self._modules)}
        places: dict[int, str] = {}
        for name, old in self._modules.items():
            place, layer = _place(name), modules.get(name)
            if layer is None or not (isinstance(old, _NormBase) or place == _CONVERTED):
                continue
            found[f"{when} module of {place}"] = places.setdefault(id(layer), place)
            for aspect, value in self._layer(layer, place):
                found[f"{when} {aspect} of {place}"] = value
        return found

    def group(self, group: Any) -> str:
        """Return the name of a process group."""
        if group is None:
            return "None (the default group)"
        if group is dist.group.WORLD:
            return "dist.group.WORLD"
        return "the given one" if group is self._given else "another one"

    def _layer(self, layer: nn.Module, place: str) -> Iterator[tuple[str, str]]:
        yield "kind", _kind(layer, place)
        yield "class", type(layer).__qualname__
        yield from ((name, str(getattr(layer, name, "not set"))) for name in _OPTIONS)
        for name in _PARAMETERS:
            value = getattr(layer, name, None)
            yield name, "None" if value is None else self._name(value)
            yield f"{name}.requires_grad", str(getattr(value, "requires_grad", None))
        for name in _BUFFERS:
            value = getattr(layer, name, None)
            yield name, "None" if value is None else f"{value.dtype} {value.flatten().tolist()}"
        for name in _HOOKS:
            hooks = getattr(layer, name, {}).values()
            yield name.strip("_"), ", ".join(self._name(hook) for hook in hooks) or "none"
        if hasattr(layer, "process_group"):
            yield "process_group", self.group(layer.process_group)
        if place == "active":
            yield "sign", _sign(layer)

    def _name(self, value: object) -> str:
        """Return where `value` was seen before."""
        return self._objects.get(id(value), ("a new object", None))[0]


def _objects(module: nn.Module) -> Iterator[tuple[str, object]]:
    for name in _PARAMETERS:
        if (value := getattr(module, name, None)) is not None:
            yield name, value
    for name in _HOOKS:
        yield from (
            (f"{name.strip('_')[:-1]} {k}", hook) for k, hook in enumerate(getattr(module, name).values())
        )


def _place(name: str) -> str:
    """Return `name` from the item on."""
    parts = name.split(".")
    start = next((k for k, part in enumerate(parts) if part in _ITEMS or part == _CONVERTED), 0)
    return ".".join(parts[start:])


def _kind(layer: nn.Module, place: str) -> str:
    if place == _CONVERTED:
        return "synchronized"
    if type(layer) in _PLAIN:
        return "plain"
    if not isinstance(layer, _BatchNorm):
        return "instance"
    return "active" if isinstance(layer, ActiveBatchNorm) else "synchronized"


def _sign(layer: nn.Module) -> str:
    """Return whether an evaluation gives negative values; its mode stays as it is."""
    mode = layer.training
    with torch.no_grad():
        y = layer.eval()(torch.linspace(-40, 40, 4 * _FEATURES * 4).view(4, _FEATURES, 2, 2))
    layer.train(mode)
    return "negative somewhere" if bool((y < 0).any()) else "nowhere negative"

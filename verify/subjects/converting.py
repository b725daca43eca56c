"""Converting: a tree of modules with every plain batch norm in it replaced by a synchronized one.

Rules
-----
- Replaced are `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` themselves. A subclass may do more than batch
  norm, and what is synchronized already has its process group: both stay as they are.
- The new layer holds the same parameters and buffers, hooks and attributes as the old one.
- A layer under several names is one layer afterwards, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OWN = ("_parameters", "_buffers", "_modules")


class Converter:
    """Converts one tree.

    The steps are methods, so that a fault replaces one and leaves the rest.

    Args:
        make: Class of the synchronized layers, with the constructor of `torch.nn.SyncBatchNorm`.
        process_group: That they get.
    """

    def __init__(self, make: Callable[..., nn.Module], process_group: Any) -> None:
        self.make = make
        self.process_group = process_group
        self._done: dict[nn.Module, nn.Module] = {}

    def convert(self, module: nn.Module) -> nn.Module:
        """Return `module`, its children converted, or what replaces it."""
        if module not in self._done:
            self._done[module] = self.replacement(module) if self.replaces(module) else module
            for name, child in self.children(module):
                self._done[module]._modules[name] = self.convert(child)
        return self._done[module]

    def replaces(self, module: nn.Module) -> bool:
        """Return whether `module` itself is to be replaced."""
        return type(module) in PLAIN

    def children(self, module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        """Return the children of `module` by name, one under two names twice."""
        return [(name, child) for name, child in module._modules.items() if child is not None]

    def replacement(self, module: nn.Module) -> nn.Module:
        """Return a synchronized layer with all that the batch norm `module` holds."""
        new = self.make(
            module.num_features,
            affine=False,
            track_running_stats=False,
            process_group=self.process_group,
        )
        vars(new).update({name: dict(v) if name in _OWN else v for name, v in vars(module).items()})
        return new

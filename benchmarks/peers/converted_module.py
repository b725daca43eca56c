"""Conversion of modules, as PyTorch's own test looks at it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.peers.checks import Check


def conversion_differences(check: Check, factory: Any, rank: int, group: Any) -> str:
    """Return what `factory.convert_sync_batchnorm`, if there is one, changes that it must not."""
    del rank
    convert = getattr(factory, "convert_sync_batchnorm", None)
    if convert is None:
        return ""
    before = nn.Sequential(nn.BatchNorm1d(check.channels), nn.InstanceNorm1d(check.channels))
    kept = {name: value.clone() for name, value in before.state_dict().items()}
    converted = convert(before, group)
    first, second = converted.children()
    found = []
    if type(first) is nn.BatchNorm1d:
        found.append("the batch norm is not converted")
    if type(second) is not nn.InstanceNorm1d:
        found.append("the instance norm is converted")
    if getattr(first, "process_group", None) is not group:
        found.append("the process group is lost")
    state = converted.state_dict()
    if state.keys() != kept.keys() or not all(torch.equal(state[name], kept[name]) for name in kept):
        found.append("the state differs")
    return "; ".join(found)

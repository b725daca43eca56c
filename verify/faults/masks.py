"""Masks: where a known discrepancy of torch is at work on a rank, as the masked faults ask for it.

Where a mask depends on other ranks, the ranks agree on it with a collective of their own, the same on every
rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verify.subjects.channels import columns

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

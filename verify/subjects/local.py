"""Plain batch norm on each rank: the negative control, a batch norm that only lacks the synchronisation.

It runs torch's native kernel on the rank's own batch and must be reported by the suite. So that nothing but
the missing synchronisation is reported, it raises nowhere where a synchronized batch norm would not: a single
value a channel on a rank is normalised to the bias, and its variance is not tracked.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class Local(_BatchNorm):  # type: ignore[misc]
    """Batch norm over the rank's own batch; takes `process_group` and never communicates.

    Raises (in forward):
        ValueError: On fewer than two dimensions, a wrong number of channels, or a single value a channel in
            training if no other rank could have more, or in evaluation without buffers.
        TypeError: On an input that is not floating-point.
    """

    syncbn_verify: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,  # noqa: FBT001, FBT002
        track_running_stats: bool = True,  # noqa: FBT001, FBT002
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised `input`, of the same shape and dtype."""
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"Expected (N, {self.num_features}, ...), but got {tuple(input.shape)}.")
        if not input.is_floating_point():
            raise TypeError(f"Expected a floating-point input, but got {input.dtype}.")
        if not self.training:
            return self._evaluate(input)
        single = input.numel() == self.num_features
        if single and self._alone():
            raise ValueError("Expected more than 1 value a channel in training, but got 1.")
        factor = self._count() if self.track_running_stats else 0.0
        return self._train_on_one(input, factor) if single else self._train(input, factor)

    def _alone(self) -> bool:
        return not (dist.is_available() and dist.is_initialized()) or (
            dist.get_world_size(self.process_group) == 1
        )

    def _count(self) -> float:
        """Count the batch; return the weight of its statistics in the buffers."""
        self.num_batches_tracked.add_(1)
        return 1.0 / int(self.num_batches_tracked) if self.momentum is None else float(self.momentum)

    def _evaluate(self, x: Tensor) -> Tensor:
        """Normalise with copies of the buffers: a later training step changes them before the backward."""
        if self.running_mean is None:
            if x.numel() == self.num_features:
                raise ValueError("Expected more than 1 value a channel without buffers, but got 1.")
            return self._native(x, None, None, training=True)
        return self._native(x, self.running_mean.clone(), self.running_var.clone(), training=False)

    def _train(self, x: Tensor, factor: float) -> Tensor:
        mean, var = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        return self._native(x, mean, var, training=True, factor=factor)

    def _train_on_one(self, x: Tensor, factor: float) -> Tensor:
        """Normalise the value as one of two equal ones."""
        if self.track_running_stats:
            self.running_mean.lerp_(x.detach().reshape(-1).to(self.running_mean.dtype), factor)
        return self._native(torch.cat([x, x]), None, None, training=True)[:1]

    def _native(
        self, x: Tensor, mean: Tensor | None, var: Tensor | None, *, training: bool, factor: float = 0.0
    ) -> Tensor:
        # Not through torch.nn.functional, which refuses eps=0 and single values.
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(x, self.weight, self.bias, mean, var, training, factor, self.eps, cudnn)

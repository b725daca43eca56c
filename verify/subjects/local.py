"""Plain batch norm on each rank: the negative control, a batch norm that only lacks the synchronisation.

It runs torch's native kernel on the rank's own batch and must be reported by the suite. So that nothing but
the
missing synchronisation is reported, it raises nowhere where a synchronized batch norm would not: one value a
channel on a rank is normalised to the bias, with a variance that is not tracked.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class Local(_BatchNorm):  # type: ignore[misc]
    """Batch norm over the rank's own batch; takes `process_group` and never communicates.

    Raises (in forward):
        ValueError: On fewer than two dimensions, or, if it is alone, one value a channel in training.
        RuntimeError: On a wrong number of channels, or an input that is not floating-point.
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

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"Expected an input of 2 or more dimensions, but got {input.dim()}.")

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised `input`, of the same shape and dtype."""
        self._check_input_dim(input)
        if not self.training:
            return self._evaluate(input)
        if input.numel() == input.shape[1] and input.shape[1] == self.num_features:
            return self._train_on_one_value(input)
        return super().forward(input)

    def _evaluate(self, x: Tensor) -> Tensor:
        """Normalise with copies of the buffers: a later training step changes them before the backward."""
        if self.running_mean is None:
            return super().forward(x)
        mean, var = self.running_mean.clone(), self.running_var.clone()
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)

    def _train_on_one_value(self, x: Tensor) -> Tensor:
        if (
            not (dist.is_available() and dist.is_initialized())
            or dist.get_world_size(self.process_group) == 1
        ):
            return super().forward(x)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            factor = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(x.detach().reshape(-1).to(self.running_mean.dtype), factor)
        twice = torch.cat([x, x])
        weight, bias = self.weight, self.bias
        return F.batch_norm(twice, None, None, weight, bias, training=True, eps=self.eps)[:1]

"""Subjects that call torch's native batch norm in evaluation, as many ports do."""

from __future__ import annotations

import torch

from verify.subjects.aggregated import Aggregated


class Inherits(Aggregated):
    """Evaluates with `torch.nn.functional.batch_norm`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training or self.running_mean is None:
            return super().forward(input)
        return torch.nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class Doubles(Inherits):
    """The same, and doubles its input's gradient in evaluation."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training and input.requires_grad:
            input = 2 * input - input.detach()
        return super().forward(input)

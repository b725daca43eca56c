"""What goes into a step's program, and what comes out of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from reference.rounding import Arithmetic


class StepInput(NamedTuple):
    """What one step of one group needs, padded.

    Attributes:
        x, g: Input and cotangent, (shards, length, C).
        mask: (shards, length), as in `reference.padding.Layout`.
        owner: (shards,), rank of each shard.
        parameters: (6, C): weight, bias, running mean and its error, running variance and its error.
        depths: (shards, 1), depth times u of a reduction within the shard's rank.
        scalars: As `StepScalars`.
        update: (15,), the `scalars` of `BufferInput`, then n - 1 if the running variance is unbiased, or 0.
    """

    x: Any
    g: Any
    mask: Any
    owner: Any
    parameters: Any
    depths: Any
    scalars: Any
    update: Any = np.array([0.0, 0.0, np.inf, 0.0, 0.0, 1.0, 0.0, 1.0, *[0.0] * 7])


class StepScalars(NamedTuple):
    """The run-time scalars of a step; booleans as 0 or 1.

    Attributes:
        u, eta, largest, depth_u, div, sqrt, rsqrt: The arithmetic, see `reference.rounding.Arithmetic`.
        n: Values a channel over the group; at least 1.
        n_error: Error of holding n in the accumulation dtype.
        eps, eps_error: Epsilon and the error of holding it.
        training: Normalise with the batch's moments.
        one_pass: Admit E[x^2] - E[x]^2 (grade C).
        store_u, store_underflow: Rounding of output and grad_input to their dtype; 0 in the accumulation
            dtype.
        parameter_u, parameter_underflow: The same for grad_weight and grad_bias.
    """

    u: Any
    eta: Any
    largest: Any
    depth_u: Any
    div: Any
    sqrt: Any
    rsqrt: Any
    n: Any
    n_error: Any
    eps: Any
    eps_error: Any
    training: Any
    one_pass: Any
    store_u: Any
    store_underflow: Any
    parameter_u: Any
    parameter_underflow: Any

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic among the scalars."""
        return Arithmetic(*self[:7])


class StepOutput(NamedTuple):
    """Values and bounds of a step, padded.

    Attributes:
        y, y_bound, grad_input, grad_input_bound: (shards, length, C), as stored.
        grad_weight, grad_weight_bound, grad_bias, grad_bias_bound: (ranks, C), before storing.
        mean, mean_bound, var, var_bound: (C,), the batch's moments; the variance is the biased one.
        buffers: (4, C), running mean and its bound, running variance and its bound after the update; None
            where none is computed.
    """

    y: Any
    y_bound: Any
    grad_input: Any
    grad_input_bound: Any
    grad_weight: Any
    grad_weight_bound: Any
    grad_bias: Any
    grad_bias_bound: Any
    mean: Any
    mean_bound: Any
    var: Any
    var_bound: Any
    buffers: Any = None

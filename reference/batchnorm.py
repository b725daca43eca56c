r"""Synchronized batch norm: the per-rank function, written with `jax.lax.pmean`.

With x of shape (positions, C), over the ranks of one process group, per channel,

    mean = pmean(sum x) / pmean(count)
    var  = pmean(sum (x - mean)^2) / pmean(count)
    y    = (x - mean) / sqrt(var + eps) * weight + bias

`pmean` alone is unweighted: sums and counts travel together, so that ranks of different sizes weigh what they
hold. Ranks of different sizes share one mapped axis by padding and a mask; a fully masked rank adds nothing.
In place of a mask of booleans numbers may say how many equal positions each one stands for.

The function is mapped by `jax.vmap(axis_name=...)` (any number of ranks on one device) or `jax.shard_map`
(real devices). Gradients are those of the mapped function by `jax.vjp`, never a second formula. The loss is
each rank's own, so weight and bias get each rank's own gradient, while grad_input sees every rank's cotangent
through the mean and the variance.

References:
    Ioffe and Szegedy, Batch Normalization, ICML 2015, section 3 and algorithm 1.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
AXIS = "ranks"


class Moments(NamedTuple):
    """Mean and biased variance, each (C,), and the number of values a channel, a scalar."""

    mean: Array
    var: Array
    number: Array


def only_real(values: Array, mask: Array) -> Array:
    """Return `values` (positions, C) with zeros in place of padding."""
    return jnp.where((mask if mask.dtype == jnp.bool_ else mask > 0)[:, None], values, 0.0)


def counted(values: Array, mask: Array) -> Array:
    """Return `values` (positions, C) as they count in a sum: padding as zero, each as often as it occurs."""
    return only_real(values if mask.dtype == jnp.bool_ else values * mask[:, None], mask)


def moments(x: Array, mask: Array, *, axis: str = AXIS) -> Moments:
    """Return the moments over all ranks of the mapped `axis`.

    Args:
        x: (positions, C), this rank's values, padded.
        mask: (positions,), True where a position is real, or how many it stands for.
        axis: Name of the mapped axis, whose members form one process group.

    Returns:
        The same moments on every rank; zeros where no rank has a value.
    """
    count = lax.pmean(jnp.sum(mask.astype(x.dtype)), axis)
    divisor = jnp.where(count > 0, count, 1.0)
    mean = lax.pmean(jnp.sum(counted(x, mask), axis=0), axis) / divisor
    centred = only_real(x - mean, mask)
    var = lax.pmean(jnp.sum(counted(centred * centred, mask), axis=0), axis) / divisor
    return Moments(mean, var, lax.psum(jnp.sum(mask.astype(x.dtype)), axis))


def normalise(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    mask: Array,
    running: tuple[Array, Array],
    training: Array,
    eps: Array,
    axis: str = AXIS,
) -> tuple[Array, Moments]:
    """Return this rank's output and the group's moments.

    Args:
        x: (positions, C), padded.
        weight: (C,), ones where the subject has none.
        bias: (C,), zeros where the subject has none.
        mask: As in `moments`.
        running: Mean and variance buffers, each (C,), used where `training` is False.
        training: Boolean scalar: normalise with the batch's moments.
        eps: Scalar added to the variance.
        axis: Name of the mapped axis.

    Returns:
        Output (positions, C), zero at masked positions, and the batch's moments.
    """
    batch = moments(x, mask, axis=axis)
    mean = jnp.where(training, batch.mean, running[0])
    var = jnp.where(training, batch.var, running[1])
    y = (x - mean) / jnp.sqrt(var + eps) * weight + bias
    return only_real(y, mask), batch


class Result(NamedTuple):
    """Output and gradients by mapped member, and the group's moments.

    Shapes: y, grad_input (members, positions, C); grad_weight, grad_bias (members, C); moments (members, C).
    """

    y: Array
    grad_input: Array
    grad_weight: Array
    grad_bias: Array
    moments: Moments


def forward_and_backward(
    mapped: Any, x: Array, weight: Array, bias: Array, cotangent: Array, *, times: Array | None = None
) -> Result:
    """Return the outputs of `mapped` and its vector-Jacobian product with the ranks' cotangents.

    Args:
        mapped: A function of (x, weight, bias), each with a leading axis of members, that returns outputs and
            moments as `normalise` does under a map.
        x: (members, positions, C).
        weight: (members, C).
        bias: (members, C).
        cotangent: (members, positions, C), zero at masked positions.
        times: (members, positions), the mask of `mapped` if it says how many equal positions each one stands
            for: each of them has the cotangent, and `grad_input` is that of one of them.
    """
    y, pull, batch = jax.vjp(mapped, x, weight, bias, has_aux=True)
    grad_input, grad_weight, grad_bias = pull(cotangent if times is None else cotangent * times[..., None])
    if times is not None:
        grad_input = grad_input / jnp.maximum(times, 1.0)[..., None]
    return Result(y, grad_input, grad_weight, grad_bias, batch)


def over_vmap(mask: Array, *, running: tuple[Array, Array], training: Array, eps: Array) -> Any:
    """Return `normalise` mapped by `jax.vmap` over the leading axis of (x, weight, bias) and of `mask`."""

    def one(x: Array, weight: Array, bias: Array, real: Array) -> tuple[Array, Moments]:
        return normalise(x, weight, bias, mask=real, running=running, training=training, eps=eps)

    return lambda x, weight, bias: jax.vmap(one, axis_name=AXIS)(x, weight, bias, mask)


def over_devices(
    mask: Array, *, running: tuple[Array, Array], training: Array, eps: Array, mesh: jax.sharding.Mesh
) -> Any:
    """Return `normalise` mapped by `jax.shard_map`, one member a device of the one-dimensional `mesh`."""
    spec = jax.sharding.PartitionSpec(AXIS)

    def one(x: Array, weight: Array, bias: Array, real: Array) -> tuple[Array, Moments]:
        y, batch = normalise(
            x[0], weight[0], bias[0], mask=real[0], running=running, training=training, eps=eps
        )
        return y[None], Moments(*(value[None] for value in batch))

    shard = partial(jax.shard_map, mesh=mesh, in_specs=(spec,) * 4, out_specs=spec, check_vma=False)
    return lambda x, weight, bias: shard(one)(x, weight, bias, mask)

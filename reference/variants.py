r"""Variants: the reference with one ingredient replaced, as a hypothesis about a wrong subject would have it.

A variant predicts what a subject with a known fault gives. Its moments, backward sums and parameter gradients
are linear in those of the single ranks, so that most faults of synchronisation are other weights:

    mean_q = sum_r A_qr mean_r,    var_q = sum_r V_qr var_r + sum_r B_qr (mean_r - mean_q)^2
    grad_input_q = (g - sum_r G_qr sum_r g - xhat d sum_r P_qr sum_r (g xhat)) invstd weight scale_q

with one row for each rank q that computes, and var_r biased. The right subject has A = V = B = n_r / n and
G = P = 1 / n. `root` replaces 1 / sqrt(var + eps); d is the derivative that belongs to it, or 1.

Bounds here are of first order, by magnitudes: a variant is compared with an observation to find a
resemblance, never to judge it. (The interpreter of `reference.bounds` takes seconds to compile for it.)

References:
    Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3 (running error analysis).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reference.executable_cache import Executable
from reference.host import configure_cache
from reference.padding import Bucket
from reference.signature import StepInput, StepOutput, StepScalars

Array = jax.Array

ROOTS = ("inside", "outside", "clamped", "twice", "without", "inverse", "squared", "identity")
"""What stands for 1 / sqrt(var + eps): itself; 1 / (sqrt(var) + eps); 1 / sqrt(max(var, eps));
1 / sqrt(var + 2 eps); 1 / sqrt(var); 1 / (var + eps); 1 / (var + eps)^2; var itself."""


class Weights(NamedTuple):
    """The weights of the ranks (columns) for each rank that computes (rows), each (ranks, ranks).

    Attributes:
        mean, within, between: A, V, B of what normalises.
        tracked_mean, tracked_within, tracked_between: The same of what goes into the buffers.
        center, tracked_center: Weights of the mean that the between-rank term is taken about; A unless said.
        cotangent, projection: G, P.
        weight, bias: Of the ranks' parameter gradients.
        scale: (ranks,), factor of grad_input.
    """

    mean: Any
    within: Any
    between: Any
    tracked_mean: Any
    tracked_within: Any
    tracked_between: Any
    cotangent: Any
    projection: Any
    weight: Any
    bias: Any
    scale: Any
    center: Any
    tracked_center: Any


class Formula(NamedTuple):
    """Run-time options of a variant.

    Attributes:
        root: Index into `ROOTS`.
        derived: 1 if the backward has the derivative of the root, 0 if it has that of the right one.
        consistent: 1 if grad_input is the exact gradient of the variant's own forward (`jax.vjp`).
        exchanged: 1 if a rank's mean and variance are taken for each other, 2 if its mean and its sum of
            centred squares are.
        corrected: 1 if the backward of an evaluation has the correction terms of training.
        swapped: 1 if the reduced sums of g and of g xhat are taken for each other.
    """

    root: Any = 0
    derived: Any = 0
    consistent: Any = 0
    exchanged: Any = 0
    swapped: Any = 0
    corrected: Any = 0


class _Estimate(NamedTuple):
    """A value and the bound of its error."""

    value: Array
    error: Array


class _Local(NamedTuple):
    """A rank's positions: how values of shards become values of ranks, and back."""

    mask: Array
    owner: Array
    ranks: int

    def sum(self, values: Array) -> Array:
        """Return the sums over each rank's positions, (ranks, C)."""
        shards = jnp.sum(jnp.where(self.mask[..., None], values, 0.0), axis=1)
        return jax.ops.segment_sum(shards, self.owner, num_segments=self.ranks)

    def spread(self, ranks: Array) -> Array:
        """Return (ranks, C) as (shards, 1, C); a shard of no rank gets what some rank has."""
        return ranks[jnp.minimum(self.owner, self.ranks - 1)][:, None]


def _root(which: Array, var: Array, eps: Array) -> Array:
    shifted = var + eps
    forms = (
        *(1.0 / jnp.sqrt(shifted), 1.0 / (jnp.sqrt(var) + eps), 1.0 / jnp.sqrt(jnp.maximum(var, eps))),
        *(1.0 / jnp.sqrt(shifted + eps), 1.0 / jnp.sqrt(var), 1.0 / shifted, 1.0 / shifted**2, var),
    )
    return jnp.stack(forms)[which]


def _factor(which: Array, var: Array, eps: Array) -> Array:
    """Return d = -2 f'(var) / f(var)^3 of the root f; 1 for one that has none of its own."""
    one, shifted = jnp.ones_like(var), var + eps
    forms = (
        *(one, (jnp.sqrt(var) + eps) / jnp.sqrt(var), jnp.where(var > eps, 1.0, 0.0), one, one),
        *(2.0 * shifted, 4.0 * shifted**3, one),
    )
    return jnp.stack(forms)[which]


def _combine(weights: Array, parts: Array) -> Array:
    return weights @ parts


def _merged(
    weights: tuple[Any, Any, Any, Any], mean: _Estimate, var: _Estimate, *, u: Array
) -> tuple[_Estimate, _Estimate]:
    """Return the combined mean and variance, each (ranks, C)."""
    a, v, b, about = (jnp.asarray(part) for part in weights)
    merged = _Estimate(a @ mean.value, jnp.abs(a) @ (mean.error + 4.0 * u * jnp.abs(mean.value)))
    center = about @ mean.value
    center_error = jnp.abs(about) @ (mean.error + 4.0 * u * jnp.abs(mean.value))
    away = mean.value[None] - center[:, None]
    away_error = mean.error[None] + center_error[:, None] + u * jnp.abs(away)
    between = jnp.sum(b[..., None] * away**2, axis=1)
    spread = jnp.sum(jnp.abs(b)[..., None] * (2.0 * jnp.abs(away) * away_error + away_error**2), axis=1)
    value = v @ var.value + between
    error = jnp.abs(v) @ var.error + spread + 6.0 * u * (jnp.abs(v) @ var.value + jnp.abs(between))
    return merged, _Estimate(value, error)


def _exchanged(mean: _Estimate, var: _Estimate, n: Array, which: Any) -> tuple[_Estimate, _Estimate]:
    """Return the moments with mean and variance (1), or mean and sum of centred squares (2), exchanged."""

    def chosen(usual: Array, first: Array, second: Array) -> Array:
        return jnp.where(which == 2, second, jnp.where(which == 1, first, usual))

    first = (chosen(mean[part], var[part], var[part] * n) for part in (0, 1))
    second = (chosen(var[part], mean[part], mean[part] / n) for part in (0, 1))
    return _Estimate(*first), _Estimate(*second)


def _exact_gradient(given: StepInput, weights: Weights, local: _Local, *, n: Array, eps: Array) -> Array:
    """Return the gradient of the variant's own forward, with 1 / sqrt(var + eps), by `jax.vjp`."""

    def forward(x: Array) -> Array:
        mean = local.sum(x) / n
        var = local.sum((x - local.spread(mean)) ** 2) / n
        used = weights.mean @ mean
        away = mean[None] - (weights.center @ mean)[:, None]
        spread = weights.within @ var + jnp.sum(weights.between[..., None] * away**2, axis=1)
        y: Array = (x - local.spread(used)) / jnp.sqrt(local.spread(spread) + eps) * given.parameters[0]
        return y

    _, pull = jax.vjp(forward, jnp.asarray(given.x))
    (gradient,) = pull(jnp.asarray(given.g))
    masked: Array = jnp.where(local.mask[..., None], gradient, 0.0)
    return masked


class _Normalised(NamedTuple):
    """What the backward needs of the forward."""

    xhat: _Estimate
    invstd: _Estimate
    factor: Array


def _normalised(x: Array, local: _Local, mean: _Estimate, invstd: _Estimate, u: Array) -> _Estimate:
    away = x - local.spread(mean.value)
    scale, scale_error = local.spread(invstd.value), local.spread(invstd.error)
    shift = local.spread(mean.error) + u * (jnp.abs(x) + local.spread(jnp.abs(mean.value)))
    error = shift * (jnp.abs(scale) + scale_error) + jnp.abs(away) * scale_error
    value = away * scale
    return _Estimate(value, error + 2.0 * u * jnp.abs(value))


def _gradients(
    given: StepInput,
    weights: Weights,
    local: _Local,
    normal: _Normalised,
    *,
    swapped: Array,
    corrected: Array,
    training: Array,
    units: tuple[Array, Array],
) -> tuple[_Estimate, _Estimate, _Estimate]:
    """Return grad_input, grad_weight and grad_bias by the usual formula, with the variant's weights."""
    (u, depth), g, (xhat, invstd, factor) = units, jnp.asarray(given.g), normal
    product = g * xhat.value
    sums = local.sum(g), local.sum(product)
    magnitudes = local.sum(jnp.abs(g)), local.sum(jnp.abs(product))
    errors = depth * magnitudes[0], (depth + 2.0 * u) * magnitudes[1] + local.sum(jnp.abs(g) * xhat.error)
    on = jnp.where(training | corrected, 1.0, 0.0)
    cotangent, projection = on * jnp.asarray(weights.cotangent), on * jnp.asarray(weights.projection)
    reduced = jnp.where(swapped, sums[1], sums[0]), jnp.where(swapped, sums[0], sums[1])
    g_mean, along = local.spread(cotangent @ reduced[0]), local.spread(factor * (projection @ reduced[1]))
    g_error = local.spread(jnp.abs(cotangent) @ errors[0])
    along_error = local.spread(jnp.abs(factor) * (jnp.abs(projection) @ errors[1]))
    scale = jnp.where(training, jnp.asarray(weights.scale), 1.0)[:, None]
    outer = local.spread(invstd.value * scale) * given.parameters[0]
    outer_error = local.spread(invstd.error * jnp.abs(scale)) * jnp.abs(given.parameters[0])
    inner = g - g_mean - xhat.value * along
    parts = jnp.abs(g) + jnp.abs(g_mean) + 2.0 * jnp.abs(xhat.value * along)
    inner_error = g_error + jnp.abs(xhat.value) * along_error + xhat.error * jnp.abs(along) + 4.0 * u * parts
    value = inner * outer
    error = inner_error * jnp.abs(outer) + jnp.abs(inner) * outer_error + 4.0 * u * jnp.abs(value)
    grad_bias, grad_weight = (
        _Estimate(jnp.asarray(rows) @ total, jnp.abs(rows) @ (error + 8.0 * u * jnp.abs(total)))
        for rows, total, error in zip((weights.bias, weights.weight), sums, errors, strict=True)
    )
    return _Estimate(value, error), grad_weight, grad_bias


def _variant(bucket: Bucket, given: StepInput, weights: Weights, formula: Formula) -> StepOutput:
    scalars, parameters = StepScalars(*given.scalars), jnp.asarray(given.parameters)
    training, u, depth = scalars.training > 0.5, scalars.u, scalars.depth_u + 8.0 * scalars.u
    local = _Local(jnp.asarray(given.mask), jnp.asarray(given.owner), bucket.ranks)
    x = jnp.asarray(given.x)
    n = jnp.maximum(local.sum(jnp.ones_like(x)), 1.0)
    mean = _Estimate(local.sum(x) / n, depth * local.sum(jnp.abs(x)) / n)
    centred = x - local.spread(mean.value)
    var = local.sum(centred**2) / n
    first = mean.error + u * jnp.sqrt(local.sum(x**2) / n)
    squares, one_pass = local.sum(x**2) / n, scalars.one_pass > 0.5
    once = (depth + 4.0 * u) * squares + 2.0 * jnp.abs(mean.value) * mean.error  # E[x^2] - E[x]^2
    centred_error = depth * var + 2.0 * jnp.sqrt(var) * first + first**2
    own = mean, _Estimate(var, jnp.where(one_pass, jnp.maximum(once, centred_error), centred_error))
    own = _exchanged(*own, n, formula.exchanged)
    batch = _merged((*weights[:3], weights.center), *own, u=u)
    tracked = _merged((*weights[3:6], weights.tracked_center), *own, u=u)

    def choose(pair: _Estimate, row: int) -> _Estimate:
        return _Estimate(
            jnp.where(training, pair.value, parameters[row]),
            jnp.where(training, pair.error, parameters[row + 1]),
        )

    used, spread = choose(batch[0], 2), choose(batch[1], 4)
    root = _root(formula.root, spread.value, scalars.eps)
    others = [
        _root(formula.root, jnp.maximum(spread.value + sign * spread.error, 0.0), scalars.eps)
        for sign in (-1.0, 1.0)
    ]
    away = jnp.maximum(*(jnp.abs(other - root) for other in others))
    negative = one_pass & training & (spread.value - spread.error + scalars.eps <= 0.0)
    away = jnp.where(negative, jnp.inf, away)
    invstd = _Estimate(root, away + 6.0 * u * jnp.abs(root))
    xhat = _normalised(x, local, used, invstd, u)
    y = xhat.value * parameters[0] + parameters[1]
    y_error = xhat.error * jnp.abs(parameters[0])
    y_error += 2.0 * u * (jnp.abs(xhat.value * parameters[0]) + jnp.abs(parameters[1]))
    factor = _factor(formula.root * formula.derived, spread.value, scalars.eps)
    grad_input, grad_weight, grad_bias = _gradients(
        *(given, weights, local, _Normalised(xhat, invstd, factor)),
        swapped=jnp.asarray(formula.swapped > 0),
        corrected=jnp.asarray(formula.corrected > 0),
        training=training,
        units=(u, depth),
    )
    exact = _exact_gradient(given, weights, local, n=n, eps=scalars.eps)
    gradient = jnp.where((formula.consistent > 0) & training, exact, grad_input.value)
    store = (scalars.store_u, scalars.store_underflow)
    return StepOutput(
        *(y, _stored(y, y_error, *store), gradient, _stored(gradient, grad_input.error, *store)),
        *(*grad_weight, *grad_bias, *tracked[0], *tracked[1]),
    )


def _stored(value: Array, error: Array, u: Array, underflow: Array) -> Array:
    total = error + u * (jnp.abs(value) + error) + underflow
    return jnp.where(jnp.isfinite(total), total, jnp.inf)


@cache
def compiled_variant(bucket: Bucket) -> Any:
    """Return the compiled function of (StepInput, Weights, Formula) for `bucket`, in the `precise` context.

    It returns a `StepOutput` whose moments have a row for each rank: (ranks, C).
    """

    def variant(given: StepInput, weights: Weights, formula: Formula) -> StepOutput:
        return _variant(bucket, given, weights, formula)

    name = "variant-{}x{}x{}-{}".format(*bucket)
    return Executable(variant, name, like=StepOutput(*StepOutput._fields[:-1]), folder=configure_cache())

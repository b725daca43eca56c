"""The program: values and bounds of one step of one process group, in one call of one compiled function.

Everything that varies from case to case but not in shape is a run-time argument, dtype facts and options
included, so that a bucket of padded shapes (`reference.padding`) is compiled once, and kept by jax's
persistent compilation cache in the user's cache folder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reference import batchnorm, forms
from reference.bounds import bound
from reference.executable_cache import Executable
from reference.host import configure_cache, precise
from reference.padding import COMMON, Bucket
from reference.pair import Pair, error_of, exact, undecided_beyond
from reference.rounding import Arithmetic
from reference.signature import StepInput, StepOutput, StepScalars

Array = jax.Array


def merge(*pairs: Pair) -> Pair:
    """Return the first pair's value with the elementwise largest error of all."""
    error = error_of(pairs[0])
    for pair in pairs[1:]:
        error = jnp.maximum(error, error_of(pair))
    return Pair(pairs[0].value, error)


def _over(function: Any, axes: tuple[int | None, ...], *, out: int | None = 0) -> Any:
    return bound(jax.vmap(function, in_axes=axes, out_axes=out, axis_name=batchnorm.AXIS))


class _Stage(NamedTuple):
    """What the stages share: data, options and arithmetic."""

    x: Pair
    g: Pair
    mask: Pair
    n: Pair
    eps: Pair
    weight: Pair
    bias: Pair
    training: Array
    one_pass: Array
    arithmetic: Arithmetic


def _rank_shift(x: Array, mask: Array, owner: Array, ranks: int, mean: Array) -> Array:
    """Return the largest distance of a rank's mean from `mean`, per channel."""
    counts = jax.ops.segment_sum(jnp.sum(mask, axis=1).astype(x.dtype), owner, num_segments=ranks)
    each = jnp.sum(jax.vmap(batchnorm.counted)(x, mask), axis=1)
    sums = jax.ops.segment_sum(each, owner, num_segments=ranks)
    held = (counts > 0)[:, None]
    means = jnp.where(held, sums / jnp.where(held, counts[:, None], 1.0), mean)
    return jnp.max(jnp.abs(means - mean), axis=0)


def _statistics(s: _Stage, shift: Pair) -> tuple[Pair, Pair]:
    mean = _over(forms.mean, (0, 0, None, None), out=None)(s.arithmetic, s.x, s.mask, s.n, shift)
    two = _over(forms.variance_two_pass, (0, None, 0, None), out=None)(s.arithmetic, s.x, mean, s.mask, s.n)
    merged = _over(forms.variance_merged, (0, None, 0, None, None), out=None)(
        s.arithmetic, s.x, mean, s.mask, s.n, shift
    )
    once = _over(forms.variance_one_pass, (0, None, 0, None), out=None)(s.arithmetic, s.x, mean, s.mask, s.n)
    centred = merge(two, merged)
    error = jnp.where(s.one_pass, jnp.maximum(error_of(centred), error_of(once)), error_of(centred))
    return mean, Pair(centred.value, error)


def _inverse_root(s: _Stage, var: Pair) -> Pair:
    clamped = merge(
        bound(forms.inverse_root)(s.arithmetic, var, s.eps),
        bound(forms.inverse_root_at_once)(s.arithmetic, var, s.eps),
    )
    unclamped = bound(forms.inverse_root_unclamped)(s.arithmetic, var, s.eps)
    one_pass = jnp.logical_and(s.one_pass, s.training)
    error = jnp.where(one_pass, jnp.maximum(error_of(clamped), error_of(unclamped)), error_of(clamped))
    return Pair(clamped.value, error)


def _output(s: _Stage, mean: Pair, invstd: Pair) -> Pair:
    arguments = (s.x, mean, invstd, s.weight, s.bias)
    return merge(
        bound(forms.output_direct)(s.arithmetic, *arguments),
        bound(forms.output_weighted_first)(s.arithmetic, *arguments),
        bound(forms.output_folded)(s.arithmetic, *arguments),
    )


def _with_raw(s: _Stage, pair: Pair, raw: Pair) -> Pair:
    """Return `pair`, with the error of raw products where grade C admits them."""
    error = jnp.maximum(error_of(pair), error_of(raw))
    return Pair(pair.value, jnp.where(s.one_pass, error, error_of(pair)))


def _clamped(var: Pair, dvar: Pair) -> Pair:
    """Return the gradient of a variance that a clamp at zero stops where it may have been negative."""
    stopped = jnp.where(var.value - error_of(var) <= 0, jnp.abs(dvar.value), 0.0)
    return Pair(dvar.value, error_of(dvar) + stopped)


def _grad_input(s: _Stage, mean: Pair, var: Pair, invstd: Pair) -> Pair:
    def when_training(pair: Pair) -> Pair:
        return Pair(jnp.where(s.training, pair.value, 0.0), jnp.where(s.training, error_of(pair), 0.0))

    axes = (0, 0, 0, None, None, None)
    sums = (s.g, s.x, s.mask, mean, invstd, s.n)
    g_mean = when_training(
        _over(forms.cotangent_mean, (0, 0, None), out=None)(s.arithmetic, s.g, s.mask, s.n)
    )
    projection = when_training(
        merge(
            _over(forms.projection_normalised, axes, out=None)(s.arithmetic, *sums),
            _with_raw(
                s,
                _over(forms.projection_centred, axes, out=None)(s.arithmetic, *sums),
                _over(forms.projection_raw, axes, out=None)(s.arithmetic, *sums),
            ),
        )
    )
    local = (s.g, s.x, mean, invstd, s.weight)
    return merge(
        bound(forms.grad_input_means)(s.arithmetic, *local, g_mean, projection, s.n),
        bound(forms.grad_input_sums)(s.arithmetic, *local, g_mean, projection, s.n),
        _grad_input_chain(s, mean, var, invstd),
    )


def _grad_input_chain(s: _Stage, mean: Pair, var: Pair, invstd: Pair) -> Pair:
    """Return the input's gradient as automatic differentiation builds it."""
    axes, sums = (0, 0, 0, None, None, None, None), (s.g, s.x, s.mask, mean, invstd, s.weight, s.n)
    through = _over(forms.chain_sums, axes, out=None)(s.arithmetic, *sums)
    dvar, dmean = _over(forms.chain_sums_raw, axes, out=None)(s.arithmetic, *sums)
    local = (s.g, s.x, mean, invstd, s.weight)
    centred = merge(
        bound(forms.grad_input_chain)(s.arithmetic, *local, *through, exact(s.training)),
        bound(forms.grad_input_scaled_first)(s.arithmetic, *local, *through, exact(s.training)),
    )
    raw = (_clamped(var, dvar), dmean, exact(s.training))
    return _with_raw(s, centred, bound(forms.grad_input_raw)(s.arithmetic, *local, *raw))


def _grad_parameters(
    s: _Stage, mean: Pair, invstd: Pair, depths: Array, owner: Array, ranks: int
) -> tuple[Pair, Pair]:
    """Return each rank's gradients of weight and bias; a rank's sum is that of its shards."""
    local = s.arithmetic._replace(depth_u=depths)
    axes = (0, 0, 0, None, None)
    arguments = (s.g, s.x, s.mask, mean, invstd)
    weight = merge(
        _over(forms.grad_weight_normalised, axes)(local, *arguments),
        _over(forms.grad_weight_scaled_first, axes)(local, *arguments),
        _with_raw(
            s,
            _over(forms.grad_weight_centred, axes)(local, *arguments),
            _over(forms.grad_weight_raw, axes)(local, *arguments),
        ),
    )
    bias = _over(forms.grad_bias, (0, 0))(local, s.g, s.mask)
    weight = _by_rank(weight, owner, ranks)
    overflows = _magnitude(s, mean, invstd, owner, ranks) >= s.arithmetic.largest
    return Pair(weight.value, jnp.where(overflows, jnp.inf, error_of(weight))), _by_rank(bias, owner, ranks)


def _magnitude(s: _Stage, mean: Pair, invstd: Pair, owner: Array, ranks: int) -> Array:
    """Return what partial sums of a rank's weight gradient, of either form and in any order, may reach."""
    centred = jnp.abs(s.x.value - mean.value) + error_of(s.x) + error_of(mean)
    terms = jnp.abs(s.g.value) * centred * jnp.maximum(1.0, invstd.value + error_of(invstd))
    by_shard = jnp.sum(jax.vmap(batchnorm.counted)(terms, s.mask.value), axis=1)
    return jax.ops.segment_sum(by_shard, owner, num_segments=ranks)


def _by_rank(pair: Pair, owner: Array, ranks: int) -> Pair:
    value = jax.ops.segment_sum(pair.value, owner, num_segments=ranks)
    return Pair(value, jax.ops.segment_sum(jnp.asarray(error_of(pair)), owner, num_segments=ranks))


def _stored(pair: Pair, u: Array, underflow: Array) -> Array:
    error = error_of(pair) + u * (jnp.abs(pair.value) + error_of(pair)) + underflow
    return jnp.where(jnp.isfinite(error), error, jnp.inf)  # 0 x infinity is undecided, too


def _read(value: Array, arithmetic: Arithmetic, *, narrowed: bool) -> Pair:
    """Return what a subject reads of a stored tensor: it is exact unless the arithmetic is narrower.

    A conversion rounds once; below the smallest normal it may give zero, and beyond the largest infinity.
    """
    if not narrowed:
        return exact(value)
    return _converted(exact(value), arithmetic.u, arithmetic.eta, arithmetic.largest)


def _converted(pair: Pair, u: Any, underflow: Any, largest: Any) -> Pair:
    """Return the pair after a conversion to a dtype of roundoff `u`; none if that is 0."""
    error = error_of(pair)
    after = error + u * (jnp.abs(pair.value) + error) + underflow
    return Pair(pair.value, jnp.where(u > 0, undecided_beyond(pair.value, after, largest), error))


def _step(bucket: Bucket, given: StepInput) -> StepOutput:
    scalars = StepScalars(*given.scalars)
    training, weight, bias = scalars.training > 0.5, given.parameters[0], given.parameters[1]
    x, g = jnp.asarray(given.x), jnp.asarray(given.g)
    running = (jnp.asarray(given.parameters[2]), jnp.asarray(given.parameters[4]))
    rank_weight = jnp.broadcast_to(weight, (bucket.ranks, bucket.channels))
    rank_bias = jnp.broadcast_to(bias, (bucket.ranks, bucket.channels))
    mapped = batchnorm.over_vmap(given.mask, running=running, training=training, eps=scalars.eps)

    def by_rank(x: Array, weight: Array, bias: Array) -> Any:
        return mapped(x, weight[given.owner], bias[given.owner])

    times = jnp.asarray(given.mask) if bucket.repeats else None
    result = batchnorm.forward_and_backward(by_rank, x, rank_weight, rank_bias, g, times=times)
    mean = result.moments.mean[0]
    arithmetic, narrowed = scalars.arithmetic, bucket.narrowed
    s = _Stage(
        x=Pair(
            x,
            jnp.where(jnp.abs(x) < scalars.eta, jnp.abs(x), 0.0)
            + error_of(_read(x, arithmetic, narrowed=narrowed)),
        ),
        g=_read(g, arithmetic, narrowed=narrowed),
        mask=exact(jnp.asarray(given.mask)),
        n=Pair(jnp.asarray(scalars.n), scalars.n_error),
        eps=Pair(jnp.asarray(scalars.eps), scalars.eps_error),
        weight=_read(weight, arithmetic, narrowed=narrowed),
        bias=_read(bias, arithmetic, narrowed=narrowed),
        training=training,
        one_pass=scalars.one_pass > 0.5,
        arithmetic=arithmetic,
    )
    shift = exact(_rank_shift(x, jnp.asarray(given.mask), given.owner, bucket.ranks, mean))
    batch_mean, batch_var = _statistics(s, shift)

    def choose(batch: Pair, row: int) -> Pair:
        held = given.parameters[row]
        kept = given.parameters[row + 1] + error_of(_read(held, arithmetic, narrowed=narrowed))
        return Pair(jnp.where(training, batch.value, held), jnp.where(training, error_of(batch), kept))

    used_mean, used_var = choose(batch_mean, 2), choose(batch_var, 4)
    invstd = _inverse_root(s, used_var)

    y, grad_input = _output(s, used_mean, invstd), _grad_input(s, used_mean, used_var, invstd)
    grad_weight, grad_bias = _grad_parameters(
        s, used_mean, invstd, given.depths, jnp.asarray(given.owner), bucket.ranks
    )
    store = (scalars.store_u, scalars.store_underflow)
    return StepOutput(
        y=result.y,
        y_bound=_stored(y, *store),
        grad_input=result.grad_input,
        grad_input_bound=_stored(grad_input, *store),
        grad_weight=result.grad_weight,
        grad_weight_bound=error_of(grad_weight),
        grad_bias=result.grad_bias,
        grad_bias_bound=error_of(grad_bias),
        mean=mean,
        mean_bound=error_of(batch_mean),
        var=result.moments.var[0],
        var_bound=error_of(batch_var),
        buffers=_updated(given, (mean, error_of(batch_mean)), (result.moments.var[0], error_of(batch_var))),
    )


def _updated(given: StepInput, mean: tuple[Any, Any], var: tuple[Any, Any]) -> Array:
    rows: list[Array] = []
    for row, moment, below in ((2, mean, 0.0), (4, var, given.update[14])):
        old = (given.parameters[row], given.parameters[row + 1])
        divisor = jnp.full(old[0].shape, below)
        rows += _update(BufferInput(*old, *moment, divisor, given.update[:14]))
    return jnp.stack(rows)


@cache
def compiled_step(bucket: Bucket) -> Any:
    """Return the compiled function of `StepInput` for `bucket`; it wants the `precise` context."""

    def step(given: StepInput) -> StepOutput:
        return _step(bucket, given)

    flags = "r" * bucket.repeats + "n" * bucket.narrowed
    name = f"step-{bucket.shards}x{bucket.length}x{bucket.channels}-{bucket.ranks}{flags}"
    return Executable(step, name, like=StepOutput(*StepOutput._fields), folder=configure_cache())


def preload(enough: Callable[[], bool]) -> None:
    """Load the executables of the commonest buckets that are kept, one by one until `enough`."""
    with precise():
        for bucket in COMMON:
            if enough():
                return
            compiled_step(bucket).load(StepInput(*StepInput._fields))


class BufferInput(NamedTuple):
    """One update of running buffers, each array (N,); see `reference.forms.buffer_weighted`.

    `below` is n - 1 for an unbiased variance, else 0. `scalars`: u, eta, largest of the arithmetic, momentum,
    its error, 1 - momentum, its error, then n and its error, then the rounding of the stored dtype (u,
    underflow), that of the moment where it is converted to the dtype of the update (u, underflow; it is
    corrected before or after: a conversion before the correction is multiplied by it), and u of reading the
    old value in a narrower dtype.
    """

    old: Any
    old_error: Any
    new: Any
    new_error: Any
    below: Any
    scalars: Any


def _update(given: BufferInput) -> tuple[Array, Array]:
    u, eta, largest, m, m_error, rest, rest_error, n, n_error, *roundings = given.scalars
    store_u, underflow, moment_u, moment_underflow, old_u = roundings
    below = jnp.asarray(given.below)
    arithmetic = Arithmetic(u, eta, largest, 0.0, 1.0, 1.0, 1.0)
    new = _converted(
        Pair(jnp.asarray(given.new), given.new_error), moment_u, moment_underflow, arithmetic.largest
    )
    divisor = jnp.where(below > 0, below, 1.0)
    corrected = bound(forms.unbiased)(arithmetic, new, Pair(jnp.asarray(n), n_error), Pair(divisor, n_error))
    new = Pair(
        jnp.where(below > 0, corrected.value, new.value),
        jnp.where(below > 0, error_of(corrected), error_of(new)),
    )
    old = _converted(Pair(jnp.asarray(given.old), given.old_error), old_u, eta, largest)
    arguments = (old, new, Pair(jnp.asarray(m), m_error), Pair(jnp.asarray(rest), rest_error))
    result = merge(
        bound(forms.buffer_weighted)(arithmetic, *arguments),
        bound(forms.buffer_stepped)(arithmetic, *arguments),
    )
    return result.value, _stored(result, store_u, underflow)


@cache
def compiled_update(size: int) -> Any:
    """Return the compiled function of `BufferInput` for arrays (size,); it wants the `precise` context."""
    return Executable(_update, f"update-{size}", like=(0, 0), folder=configure_cache())

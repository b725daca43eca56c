"""The reference against batch norms that others wrote for jax, where their contract coincides.

They keep a biased running variance, a momentum that weighs the old value, and (haiku, equinox) weigh ranks
equally: so splits are equal here, and buffers are compared modulo those conventions.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reference import batchnorm
from reference.host import precise

EPS, RANKS, N, C = 1e-3, 3, 4, 5


@pytest.fixture
def problem():
    rng = np.random.Generator(np.random.Philox(5))
    x = rng.standard_normal((RANKS, N, C)) * 2 + rng.standard_normal((RANKS, 1, C))
    return x, rng.standard_normal((RANKS, N, C)), rng.standard_normal(C), rng.standard_normal(C)


def reference(x, g, weight, bias):
    mapped = batchnorm.over_vmap(
        jnp.ones((RANKS, N), bool), running=(jnp.zeros(C), jnp.ones(C)), training=True, eps=EPS
    )
    rows = (jnp.tile(weight, (RANKS, 1)), jnp.tile(bias, (RANKS, 1)))
    return batchnorm.forward_and_backward(mapped, jnp.asarray(x), *rows, jnp.asarray(g))


def assert_equal(ours, y, grads):
    np.testing.assert_allclose(y, ours.y, rtol=1e-10, atol=1e-11)
    for theirs, mine in zip(grads, (ours.grad_input, ours.grad_weight, ours.grad_bias), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-9, atol=1e-10)


def test_flax_linen_agrees(problem):
    from flax import linen

    x, g, weight, bias = problem
    with precise():
        ours = reference(x, g, weight, bias)
        layer = linen.BatchNorm(
            use_running_average=False,
            momentum=0.9,
            epsilon=EPS,
            axis_name="ranks",
            dtype=jnp.float64,
            param_dtype=jnp.float64,
            use_fast_variance=False,
        )
        buffers = {"mean": jnp.zeros(C), "var": jnp.ones(C)}

        def one(x, weight, bias):
            state = {"params": {"scale": weight, "bias": bias}, "batch_stats": buffers}
            return layer.apply(state, x, mutable=["batch_stats"])

        rows = (jnp.tile(weight, (RANKS, 1)), jnp.tile(bias, (RANKS, 1)))
        y, pull, state = jax.vjp(jax.vmap(one, axis_name="ranks"), jnp.asarray(x), *rows, has_aux=True)
        assert_equal(ours, y, pull(jnp.asarray(g)))
        running = np.asarray(state["batch_stats"]["var"])[0]
    np.testing.assert_allclose(running, 0.9 + 0.1 * np.asarray(ours.moments.var[0]), rtol=1e-12)


def test_haiku_agrees(problem):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # haiku imports names that jax has deprecated
        import haiku

    x, g, weight, bias = problem
    with precise():
        ours = reference(x, g, weight, bias)

        def layer(x):
            norm = haiku.BatchNorm(True, True, decay_rate=0.9, eps=EPS, cross_replica_axis="ranks")
            return norm(x, is_training=True)

        transformed = haiku.transform_with_state(layer)
        _, state = jax.vmap(lambda x: transformed.init(None, x), axis_name="ranks")(jnp.asarray(x))
        state = jax.tree.map(lambda leaf: leaf[0], state)

        def one(x, weight, bias):
            parameters = {"batch_norm": {"scale": weight[None], "offset": bias[None]}}
            return transformed.apply(parameters, state, None, x)[0]

        rows = (jnp.tile(weight, (RANKS, 1)), jnp.tile(bias, (RANKS, 1)))
        y, pull = jax.vjp(jax.vmap(one, axis_name="ranks"), jnp.asarray(x), *rows)
        assert_equal(ours, y, pull(jnp.asarray(g)))


def test_equinox_agrees(problem):
    import equinox

    x, g, weight, bias = problem
    with precise():
        ours = reference(x, g, weight, bias)
        made, state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(
            C, axis_name="batch", eps=EPS, mode="batch", dtype=jnp.float64
        )

        def one(x, weight, bias):
            layer = equinox.tree_at(lambda m: (m.weight, m.bias), made, (weight, bias))
            return layer(x, state)[0]

        def whole(x, weight, bias):
            # equinox maps single samples: one axis over ranks and samples
            flat = jax.vmap(one, axis_name="batch")(
                x.reshape(-1, C), jnp.repeat(weight, N, axis=0), jnp.repeat(bias, N, axis=0)
            )
            return flat.reshape(x.shape)

        rows = (jnp.tile(weight, (RANKS, 1)), jnp.tile(bias, (RANKS, 1)))
        y, pull = jax.vjp(whole, jnp.asarray(x), *rows)
        assert_equal(ours, y, pull(jnp.asarray(g)))

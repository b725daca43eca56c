"""The reference against mpmath at 50 digits, and the two ways of mapping it against each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from reference import batchnorm
from reference.host import precise

EPS = 1e-3


def run(x, g, mask, weight, bias, *, training=True, running=None):
    with precise():
        channels = x.shape[2]
        running = running or (np.zeros(channels), np.ones(channels))
        mapped = batchnorm.over_vmap(
            jnp.asarray(mask), running=tuple(map(jnp.asarray, running)), training=training, eps=EPS
        )
        rows = (jnp.tile(weight, (len(x), 1)), jnp.tile(bias, (len(x), 1)))
        return batchnorm.forward_and_backward(mapped, jnp.asarray(x), *rows, jnp.asarray(g))


@pytest.fixture
def problem():
    """Four ranks with 2, 0, 3 and 1 values of two channels; one channel with a large mean."""
    rng = np.random.Generator(np.random.Philox(3))
    mask = np.arange(3)[None, :] < np.array([2, 0, 3, 1])[:, None]
    x = np.where(mask[..., None], rng.standard_normal((4, 3, 2)) + np.array([0.5, 1000.0]), 0.0)
    g = np.where(mask[..., None], rng.standard_normal((4, 3, 2)), 0.0)
    return x, g, mask, rng.standard_normal(2), rng.standard_normal(2)


def exact_outputs(values, weight, bias):
    """Outputs of one channel in mpmath, by the definition on the concatenated batch."""
    mean = mpmath.fsum(values) / len(values)
    var = mpmath.fsum((v - mean) ** 2 for v in values) / len(values)
    return mean, var, [(v - mean) / mpmath.sqrt(var + mpmath.mpf(EPS)) * weight + bias for v in values]


def test_outputs_and_moments_equal_mpmath(problem):
    x, g, mask, weight, bias = problem
    result = run(x, g, mask, weight, bias)
    with mpmath.workdps(50):
        for c in range(2):
            values = [mpmath.mpf(v) for v in x[..., c][mask]]
            mean, var, y = exact_outputs(values, mpmath.mpf(weight[c]), mpmath.mpf(bias[c]))
            assert abs(float(result.moments.mean[0, c]) - mean) <= abs(mean) * 1e-15
            assert abs(float(result.moments.var[0, c]) - var) <= var * 1e-13
            observed = np.asarray(result.y)[..., c][mask]
            assert max(abs(o - e) for o, e in zip(observed, y, strict=True)) < 1e-12


def test_gradients_equal_mpmath_s_numerical_derivatives(problem):
    """Central differences with step 1e-20 at 50 digits: nothing of the backward formula is shared."""
    x, g, mask, weight, bias = problem
    result = run(x, g, mask, weight, bias)
    with mpmath.workdps(50):
        step = mpmath.mpf("1e-20")
        for c in range(2):
            values = [mpmath.mpf(v) for v in x[..., c][mask]]
            cotangent = [mpmath.mpf(v) for v in g[..., c][mask]]

            def loss(values, w, c=c, cotangent=cotangent):
                y = exact_outputs(values, w, mpmath.mpf(bias[c]))[2]
                return mpmath.fsum(a * b for a, b in zip(cotangent, y, strict=True))

            w = mpmath.mpf(weight[c])
            observed = np.asarray(result.grad_input)[..., c][mask]
            for i in range(len(values)):
                up, down = list(values), list(values)
                up[i], down[i] = values[i] + step, values[i] - step
                slope = (loss(up, w) - loss(down, w)) / (2 * step)
                assert abs(observed[i] - slope) < 1e-11
            slope = (loss(values, w + step) - loss(values, w - step)) / (2 * step)
            assert abs(np.asarray(result.grad_weight)[:, c].sum() - slope) < 1e-11


def test_parameters_gradients_are_each_rank_s_own(problem):
    x, g, mask, weight, bias = problem
    result = run(x, g, mask, weight, bias)
    np.testing.assert_allclose(result.grad_bias, g.sum(axis=1), rtol=1e-15, atol=1e-15)
    assert not np.asarray(result.grad_weight)[1].any()


def test_grad_input_sees_every_rank_s_cotangents(problem):
    x, g, mask, weight, bias = problem
    alone = np.where(np.arange(4)[:, None, None] == 0, g, 0.0)
    result = run(x, alone, mask, weight, bias)
    assert np.abs(np.asarray(result.grad_input)[2]).max() > 1e-3


def test_masked_rank_gives_neither_nan_nor_weight():
    x, g = np.ones((3, 2, 1)), np.ones((3, 2, 1))
    mask = np.array([[True, True], [False, False], [True, False]])
    x[0, 0] = 4.0
    result = run(x, g * mask[..., None], mask, np.ones(1), np.zeros(1))
    assert np.isfinite(result.y).all()
    assert np.isfinite(result.grad_input).all()
    assert np.asarray(result.moments.mean)[0, 0] == 2.0
    assert np.asarray(result.moments.number)[0] == 3.0


def test_evaluation_uses_the_buffers_and_couples_nothing(problem):
    x, g, mask, weight, bias = problem
    running = (np.array([1.0, 900.0]), np.array([4.0, 9.0]))
    result = run(x, g, mask, weight, bias, training=False, running=running)
    expected = (x - running[0]) / np.sqrt(running[1] + EPS) * weight + bias
    np.testing.assert_allclose(result.y, np.where(mask[..., None], expected, 0.0), rtol=1e-13)
    np.testing.assert_allclose(result.grad_input, g * weight / np.sqrt(running[1] + EPS), rtol=1e-13)


SHARD_MAP = """
import jax, sys
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_platforms", "cpu")
import numpy as np, jax.numpy as jnp
from reference import batchnorm
from reference.host import precise

rng = np.random.Generator(np.random.Philox(11))
mask = np.arange(5)[None, :] < np.array([5, 0, 1, 3])[:, None]
x = rng.standard_normal((4, 5, 3)) * mask[..., None]
g = rng.standard_normal((4, 5, 3)) * mask[..., None]
with precise():
    options = dict(running=(jnp.zeros(3), jnp.ones(3)), training=True, eps=1e-5)
    rows = (jnp.tile(rng.standard_normal(3), (4, 1)), jnp.tile(rng.standard_normal(3), (4, 1)))
    arguments = (jnp.asarray(x), *rows, jnp.asarray(g))
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")), (batchnorm.AXIS,))
    assert mesh.size == 4
    devices = batchnorm.over_devices(jnp.asarray(mask), mesh=mesh, **options)
    one = batchnorm.forward_and_backward(devices, *arguments)
    two = batchnorm.forward_and_backward(batchnorm.over_vmap(jnp.asarray(mask), **options), *arguments)
    worst = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in
                zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
sys.stdout.write(repr(worst))
"""


@pytest.mark.costly
def test_vmap_and_shard_map_over_four_devices_agree():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SHARD_MAP], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-14

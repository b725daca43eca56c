"""Variants of the reference: the right weights give the reference, wrong ones a wrong subject's values."""

from __future__ import annotations

import numpy as np
import pytest

from reference.host import precise
from reference.padding import layout, pack
from reference.program import compiled_step
from reference.rounding import arithmetic
from reference.signature import StepInput, StepScalars
from reference.variants import ROOTS, Formula, Weights, compiled_variant

COUNTS, C, EPS = (3, 5, 0), 2, 0.25


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(7)
    where = layout(COUNTS, C)
    x = [rng.normal(1.5, 2.0, (n, C, 1)) for n in COUNTS]
    g = [rng.normal(size=(n, C, 1)) for n in COUNTS]
    parameters = np.zeros((6, where.bucket.channels))
    parameters[0], parameters[4] = 1.0, 1.0
    parameters[0, :C], parameters[1, :C] = (1.5, -0.75), (0.5, 0.25)
    scalars = StepScalars(
        *arithmetic("float32", n=8, ranks=2, grade="A", device="cpu"),
        n=8.0,
        n_error=0.0,
        eps=EPS,
        eps_error=0.0,
        training=1.0,
        one_pass=0.0,
        store_u=0.0,
        store_underflow=0.0,
        parameter_u=0.0,
        parameter_underflow=0.0,
    )
    depths = np.zeros((where.bucket.shards, 1))
    packed = pack(where, x), pack(where, g)
    return (
        where,
        StepInput(*packed, where.mask, where.owner, parameters, depths, np.asarray(scalars)),
        (x, g, parameters),
    )


def weights(where, **changes):
    ranks, n = where.bucket.ranks, np.array([*COUNTS, *[0] * (where.bucket.ranks - 3)], float)
    merge = np.tile(n / n.sum(), (ranks, 1))
    right = dict.fromkeys(
        ("mean", "within", "between", "tracked_mean", "tracked_within", "tracked_between"), merge
    )
    right |= dict.fromkeys(("cotangent", "projection"), np.full((ranks, ranks), 1 / n.sum()))
    right |= dict.fromkeys(("weight", "bias"), np.eye(ranks))
    right |= {"scale": np.ones(ranks), "center": merge, "tracked_center": merge}
    return Weights(**(right | changes))


@pytest.mark.parametrize("formula", [Formula(), Formula(consistent=1)])
def test_the_right_weights_give_the_reference(given, formula):
    where, step, _ = given
    with precise():
        right = compiled_step(where.bucket)(step)
        same = compiled_variant(where.bucket)(step, weights(where), formula)
    real = where.mask[..., None]
    for name in ("y", "grad_input"):
        seen, wanted = (np.where(real, getattr(one, name), 0.0) for one in (same, right))
        np.testing.assert_allclose(seen, wanted, rtol=1e-13, atol=1e-13)
    for name in ("grad_weight", "grad_bias"):
        np.testing.assert_allclose(getattr(same, name), getattr(right, name), rtol=1e-13, atol=1e-13)
    for rank in range(3):
        np.testing.assert_allclose(same.mean[rank], right.mean, rtol=1e-13)
        np.testing.assert_allclose(same.var[rank], right.var, rtol=1e-13)
    for name in ("y_bound", "grad_input_bound", "grad_weight_bound", "mean_bound", "var_bound"):
        assert np.all(np.asarray(getattr(same, name)) <= 30 * np.max(np.asarray(getattr(right, name))))
        assert np.all(np.asarray(getattr(same, name)) >= 0)


def test_the_identity_as_weights_gives_each_rank_its_own_batch(given):
    where, step, (x, _, parameters) = given
    own = np.eye(where.bucket.ranks)
    with precise():
        variant = compiled_variant(where.bucket)(
            step, weights(where, mean=own, within=own, between=0 * own, center=own), Formula()
        )
    for rank in (0, 1):
        mean, var = x[rank].mean(0), x[rank].var(0)
        y = (x[rank] - mean) / np.sqrt(var + EPS) * parameters[0, :C, None] + parameters[1, :C, None]
        seen = np.asarray(variant.y).reshape(-1, where.bucket.channels)[where.starts[rank] :]
        np.testing.assert_allclose(seen[: COUNTS[rank], :C], y[..., 0], rtol=1e-12)


def root_of(var, which):
    return {
        "inside": 1 / np.sqrt(var + EPS),
        "outside": 1 / (np.sqrt(var) + EPS),
        "clamped": 1 / np.sqrt(np.maximum(var, EPS)),
        "twice": 1 / np.sqrt(var + 2 * EPS),
        "without": 1 / np.sqrt(var),
        "inverse": 1 / (var + EPS),
        "squared": 1 / (var + EPS) ** 2,
        "identity": var,
    }[which]


@pytest.mark.parametrize("which", ROOTS)
def test_roots_and_their_derivatives_are_what_they_say(given, which):
    where, step, (x, g, parameters) = given
    with precise():
        variant = compiled_variant(where.bucket)(
            step, weights(where), Formula(root=ROOTS.index(which), derived=1)
        )
    whole = np.concatenate([part[..., 0] for part in x])
    cotangent = np.concatenate([part[..., 0] for part in g])
    weight = parameters[0, :C]

    def output(values):
        mean = values.mean(0)
        return (values - mean) * root_of(values.var(0), which) * weight + parameters[1, :C]

    def flat(array):
        rows = np.asarray(array).reshape(-1, where.bucket.channels)[:, :C]
        return np.concatenate([rows[s : s + n] for s, n in zip(where.starts, COUNTS, strict=True)])

    np.testing.assert_allclose(flat(variant.y), output(whole), rtol=1e-12)
    if which in ("identity",):
        return  # its derivative is none that a subject would have
    numeric, h = np.zeros_like(whole), 1e-6
    for i in range(len(whole)):
        for c in range(C):
            up, down = whole.copy(), whole.copy()
            up[i, c] += h
            down[i, c] -= h
            numeric[i, c] = ((output(up) - output(down)) * cotangent).sum() / (2 * h)
    np.testing.assert_allclose(flat(variant.grad_input), numeric, rtol=1e-5, atol=1e-7)


def test_it_is_compiled_once_a_bucket(given):
    where, _, _ = given
    assert compiled_variant(where.bucket) is compiled_variant(where.bucket)

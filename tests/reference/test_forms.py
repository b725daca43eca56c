"""Forms: each equals the reference's value, and the named derivations cover the algorithms they speak of."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import batchnorm, forms
from reference.bounds import bound
from reference.host import precise
from reference.pair import Pair, exact
from reference.rounding import arithmetic

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
AXIS = batchnorm.AXIS


@pytest.fixture(scope="module")
def problem():
    """Three ranks with 5, 0 and 3 values a channel, and the reference's result for them."""
    rng = np.random.Generator(np.random.Philox(7))
    mask = np.arange(6)[None, :] < np.array([5, 0, 3])[:, None]
    x = np.where(mask[..., None], rng.standard_normal((3, 6, 2)) + 3.0, 0.0)
    g = np.where(mask[..., None], rng.standard_normal((3, 6, 2)), 0.0)
    weight, bias = rng.standard_normal(2), rng.standard_normal(2)
    with precise():
        running = (jnp.zeros(2), jnp.ones(2))
        mapped = batchnorm.over_vmap(jnp.asarray(mask), running=running, training=True, eps=1e-3)
        result = batchnorm.forward_and_backward(
            mapped, jnp.asarray(x), jnp.tile(weight, (3, 1)), jnp.tile(bias, (3, 1)), jnp.asarray(g)
        )
    return {"x": x, "g": g, "mask": mask, "weight": weight, "bias": bias, "n": 8.0, "result": result}


def over(function, *axes, out=0):
    return jax.vmap(function, in_axes=axes, out_axes=out, axis_name=AXIS)


def test_every_form_of_the_statistics_has_the_reference_s_value(problem):
    p, shift = problem, np.zeros(2)
    with precise():
        mean = over(forms.mean, 0, 0, None, None, out=None)(p["x"], p["mask"], p["n"], shift)
        np.testing.assert_allclose(mean, p["result"].moments.mean[0], rtol=1e-14)
        for form in (forms.variance_two_pass, forms.variance_one_pass):
            var = over(form, 0, None, 0, None, out=None)(p["x"], mean, p["mask"], p["n"])
            np.testing.assert_allclose(var, p["result"].moments.var[0], rtol=1e-12)
        merged = over(forms.variance_merged, 0, None, 0, None, None, out=None)
        var = merged(p["x"], mean, p["mask"], p["n"], shift)
        np.testing.assert_allclose(var, p["result"].moments.var[0], rtol=1e-13)


def test_every_form_of_output_and_gradients_has_the_reference_s_value(problem):
    p, real = problem, problem["mask"][..., None]
    with precise():
        mean, var = p["result"].moments.mean[0], p["result"].moments.var[0]
        invstd = forms.inverse_root(var, 1e-3)
        np.testing.assert_array_equal(invstd, forms.inverse_root_at_once(var, 1e-3))
        for form in (forms.output_direct, forms.output_weighted_first, forms.output_folded):
            y = form(p["x"], mean, invstd, p["weight"], p["bias"])
            np.testing.assert_allclose(np.where(real, y, 0), p["result"].y, rtol=1e-12, atol=1e-13)
        g_mean = over(forms.cotangent_mean, 0, 0, None, out=None)(p["g"], p["mask"], p["n"])
        axes = (0, 0, 0, None, None, None)
        projections = [
            over(form, *axes, out=None)(p["g"], p["x"], p["mask"], mean, invstd, p["n"])
            for form in (forms.projection_normalised, forms.projection_centred, forms.projection_raw)
        ]
        gradients = [
            form(p["g"], p["x"], mean, invstd, p["weight"], g_mean, projections[0], p["n"])
            for form in (forms.grad_input_means, forms.grad_input_sums)
        ]
        chain = over(forms.chain_sums, 0, 0, 0, None, None, None, None, out=None)
        sums = chain(p["g"], p["x"], p["mask"], mean, invstd, p["weight"], p["n"])
        local = (p["g"], p["x"], mean, invstd, p["weight"])
        gradients.append(forms.grad_input_chain(*local, *sums, True))
        gradients.append(forms.grad_input_scaled_first(*local, *sums, True))
        raw = over(forms.chain_sums_raw, 0, 0, 0, None, None, None, None, out=None)
        sums = raw(p["g"], p["x"], p["mask"], mean, invstd, p["weight"], p["n"])
        gradients.append(forms.grad_input_raw(*local, *sums, True))
    for projection in projections[1:]:
        np.testing.assert_allclose(projections[0], projection, rtol=1e-12)
    for gradient in gradients:
        np.testing.assert_allclose(
            np.where(real, gradient, 0), p["result"].grad_input, rtol=1e-10, atol=1e-13
        )


def test_every_form_of_the_parameters_gradients_has_the_reference_s_value(problem):
    p = problem
    with precise():
        mean, var = p["result"].moments.mean[0], p["result"].moments.var[0]
        invstd = forms.inverse_root(var, 1e-3)
        for form in (
            forms.grad_weight_normalised,
            forms.grad_weight_centred,
            forms.grad_weight_scaled_first,
            forms.grad_weight_raw,
        ):
            value = over(form, 0, 0, 0, None, None)(p["g"], p["x"], p["mask"], mean, invstd)
            np.testing.assert_allclose(value, p["result"].grad_weight, rtol=1e-12)
        value = over(forms.grad_bias, 0, 0)(p["g"], p["mask"])
        np.testing.assert_allclose(value, p["result"].grad_bias, rtol=1e-14)


def values(dtype):
    offset = st.sampled_from([0.0, 1.0, 30.0, -100.0])
    noise = st.lists(st.integers(-64, 64), min_size=2, max_size=24)
    return st.builds(lambda o, z: [DTYPES[dtype](o + v / 32) for v in z], offset, noise).map(np.asarray)


def welford(x, dtype):
    """Mean and M2 by Welford's update, element by element, every operation rounded in the dtype."""
    mean, m2 = DTYPES[dtype](0), DTYPES[dtype](0)
    for k, value in enumerate(x, start=1):
        delta = value - mean
        mean = mean + delta / DTYPES[dtype](k)
        m2 = m2 + delta * (value - mean)
    return float(mean), float(m2)


def chan(x, dtype, *, cut):
    """Mean and M2 of two blocks by Welford, merged by Chan's formula; either block may be small."""
    kind = DTYPES[dtype]
    (mean_a, m2_a), (mean_b, m2_b) = welford(x[:cut], dtype), welford(x[cut:], dtype)
    n_a, n_b, n = kind(cut), kind(len(x) - cut), kind(len(x))
    delta = kind(mean_b) - kind(mean_a)
    mean = kind(mean_a) + delta * (n_b / n)
    return float(mean), float(kind(m2_a) + kind(m2_b) + delta * delta * (n_a * n_b / n))


def two_pass(x, dtype):
    """Mean and M2 with sequential sums in the dtype."""
    kind = DTYPES[dtype]
    total = kind(0)
    for value in x:
        total = total + value
    mean = total / kind(len(x))
    m2 = kind(0)
    for value in x:
        m2 = m2 + (value - mean) * (value - mean)
    return float(mean), float(m2)


def bounds_of(x, dtype, form, *, cut=None):
    """Bounds of mean and M2 in grade B, for one rank, or two when the data is cut."""
    cut = len(x) if cut is None else cut
    data = x.astype(np.float64)
    parts = [part for part in (data[:cut], data[cut:]) if len(part)]
    length = 32
    padded = np.zeros((2, length, 1))
    mask = np.zeros((2, length), bool)
    for row, part in enumerate(parts):
        padded[row, : len(part), 0], mask[row, : len(part)] = part, True
    shift = np.array([max(abs(part.mean() - data.mean()) for part in parts)])
    n = exact(jnp.asarray(float(len(x))))
    math = arithmetic(dtype, n=len(x), ranks=len(parts), grade="B")
    over_ranks = {"axis_name": AXIS, "out_axes": None}
    mean = bound(jax.vmap(forms.mean, in_axes=(0, 0, None, None), **over_ranks))(
        math, exact(padded), exact(mask), n, exact(shift)
    )
    if form is forms.merged_square_sum:
        function, extra, axes = form, (exact(shift),), (0, None, 0, None, None)
    else:
        function, extra, axes = form, (), (0, None, 0, None)
    square = bound(jax.vmap(function, in_axes=axes, **over_ranks))(
        math, exact(padded), mean, exact(mask), n, *extra
    )
    return float(mean.error[0]), float(square.error[0])


def exact_moments(x):
    numbers = [Fraction(float(value)) for value in x]
    mean = sum(numbers) / len(numbers)
    return mean, sum((value - mean) ** 2 for value in numbers)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_named_rules_cover_two_pass_welford_and_merged_moments(dtype, data):
    x = data.draw(values(dtype))
    cut = data.draw(st.integers(1, len(x) - 1))
    mean, m2 = exact_moments(x)
    with precise():
        algorithms = [
            (two_pass(x, dtype), bounds_of(x, dtype, forms.common_mean_square_sum)),
            (welford(x, dtype), bounds_of(x, dtype, forms.merged_square_sum)),
            (chan(x, dtype, cut=cut), bounds_of(x, dtype, forms.merged_square_sum, cut=cut)),
        ]
    for (observed_mean, observed_m2), (mean_bound, m2_bound) in algorithms:
        assert np.isinf(mean_bound) or abs(Fraction(observed_mean) - mean) <= Fraction(mean_bound)
        assert np.isinf(m2_bound) or abs(Fraction(observed_m2) - m2) <= Fraction(m2_bound)


def test_common_mean_is_much_tighter_than_merged_moments_on_a_large_mean():
    x = (np.arange(16) % 2 + 1000.0).astype(np.float32)
    with precise():
        common = bounds_of(x, "float32", forms.common_mean_square_sum)[1]
        merged = bounds_of(x, "float32", forms.merged_square_sum)[1]
    assert common * 10 < merged


@pytest.mark.parametrize("var", [0.0, 1e-12, 1e-5, 1.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_inverse_root_covers_both_ends_of_a_clamped_variance(var, sign):
    error = 3e-6
    held = np.float32(max(var + sign * error, 0.0))
    observed = float(np.float32(1) / np.sqrt(held + np.float32(1e-5)))
    with precise():
        pair = bound(forms.inverse_root)(
            arithmetic("float32", n=1, ranks=1, grade="A"),
            Pair(jnp.asarray(var), error),
            Pair(jnp.asarray(1e-5), 1e-5 * 2.0**-24),
        )
    assert abs(observed - float(pair.value)) <= float(pair.error)
    assert np.isfinite(float(pair.error))


def test_inverse_root_is_undecided_where_the_radicand_may_vanish():
    with precise():
        pair = bound(forms.inverse_root)(
            arithmetic("float32", n=1, ranks=1, grade="A"),
            Pair(jnp.asarray(0.0), 0.0),
            Pair(jnp.asarray(0.0), 0.0),
        )
    assert np.isinf(float(pair.error))


def test_folded_output_covers_its_arithmetic_and_is_linear_in_the_mean():
    rng = np.random.Generator(np.random.Philox(9))
    x = (rng.standard_normal(200) + 700).astype(np.float32)
    mean, invstd, weight, bias = np.float32(700.01), np.float32(1.003), np.float32(-0.7), np.float32(0.4)
    scale = invstd * weight
    observed = x * scale + (bias - mean * scale)
    spread = 1e-5 * float(invstd)
    with precise():
        pair = bound(forms.output_folded)(
            arithmetic("float32", n=1, ranks=1, grade="A"),
            exact(jnp.asarray(x, jnp.float64)),
            exact(jnp.asarray(float(mean))),
            Pair(jnp.asarray(float(invstd) + spread / 2), spread),
            exact(jnp.asarray(float(weight))),
            exact(jnp.asarray(float(bias))),
        )
    error = np.abs(observed.astype(np.float64) - np.asarray(pair.value))
    assert (error <= np.asarray(pair.error)).all()
    assert np.asarray(pair.error).max() < 5 * 2.0**-24 * 700 + 4 * spread


def test_undecided_variance_makes_an_undecided_root():
    with precise():
        for form in (forms.inverse_root, forms.inverse_root_at_once):
            pair = bound(form)(
                arithmetic("float32", n=1, ranks=1, grade="A"),
                Pair(jnp.asarray(1e70), np.inf),
                Pair(jnp.asarray(1e-5), 0.0),
            )
            assert np.isinf(float(pair.error))


@jax.jit
def bounded_root_gradient(math, total, invstd):
    along = bound(lambda t, s: (t * s) * s)(math, total, invstd)
    return bound(forms.root_gradient)(math, along, total, total, invstd)


def root_gradient(dtype, total, invstd, error=0.0):
    """Value and bound of -1/2 S invstd^3 from an exact S and invstd with its error."""
    with precise():
        math = arithmetic(dtype, n=1, ranks=1, grade="A")
        pair = bounded_root_gradient(math, Pair(total, 0.0), Pair(invstd, error))
        return float(pair.value), float(pair.error)


def differentiated(total, shifted, kind):
    """What autograd makes of S, in the dtype's arithmetic, by way of writing the scale."""
    with np.errstate(all="ignore"):
        root = np.sqrt(shifted)
        inverse = kind(1) / root
        half = kind(-0.5)
        std = np.sqrt(shifted)
        return {
            "rsqrt": (half * total) * (inverse * inverse * inverse),
            "power": total * (half * kind(inverse * inverse * inverse)),
            "one over root": (-total * (inverse * inverse)) / (root * kind(2)),
            "divided": (-(total / root) / root) / (root * kind(2)),
            "standard deviation": ((half * total) * (inverse * inverse * inverse))
            * (std + std)
            / (std + std),
        }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_the_gradient_of_the_scale_is_covered_in_every_way_of_writing_it(dtype, data):
    """Also where the cube of the scale is flushed, or has few digits left, or overflows."""
    kind, span = DTYPES[dtype], {"float32": 62, "float64": 510}[dtype]
    mantissas = st.integers(2**10, 2**11 - 1)
    exponent = st.integers(-span, span)
    shifted = kind(np.ldexp(float(data.draw(mantissas)), 2 * data.draw(exponent) - 11))
    total = kind(np.ldexp(float(data.draw(mantissas)), data.draw(exponent) - 11))
    u = float(np.finfo(kind).eps) / 2
    with mpmath.workdps(60):
        invstd = 1 / mpmath.sqrt(mpmath.mpf(float(shifted)))
        exact_value = -mpmath.mpf(float(total)) * invstd**3 / 2
        _, error = root_gradient(dtype, float(total), float(invstd), 3 * u * float(invstd))
        for name, observed in differentiated(total, shifted, kind).items():
            covered = np.isinf(error) or abs(mpmath.mpf(float(observed)) - exact_value) <= mpmath.mpf(error)
            assert covered, name


def test_the_bounded_gradient_of_the_scale_has_the_value_of_its_form():
    with precise():
        whole = forms.root_gradient(*(jnp.float64(number) for number in ((3.0 * 1.7) * 1.7, 3.0, 3.0, 1.7)))
    assert root_gradient("float64", 3.0, 1.7)[0] == float(whole)


def test_what_a_flushed_cube_may_lose_is_the_gradient_of_the_variance_and_no_more():
    """S = 1e18 and invstd = 1e-18 in float32: the cube, 1e-54, is zero, and S does not matter then."""
    value, error = root_gradient("float32", 1e18, 1e-18)
    assert abs(value) == pytest.approx(5e-37)
    assert abs(value) <= error <= 1.001 * abs(value) + 4 * 2.0**-126


def test_a_cube_that_may_overflow_is_undecided():
    assert root_gradient("float32", 1e-20, 1e13)[1] == np.inf
    assert root_gradient("float64", 1e-20, 1e13)[1] < 1e13


def test_the_gradient_of_an_ordinary_scale_is_charged_its_roundings_alone():
    value, error = root_gradient("float32", 3.0, 2.0)
    assert 7 * 2.0**-24 * abs(value) <= error <= 8 * 2.0**-24 * abs(value)


def test_raw_products_are_charged_for_what_cancels():
    """Sum(g x) - mean sum(g) at mean 1000: its bound is that of the products, not of their difference."""
    rng = np.random.Generator(np.random.Philox(11))
    x = (rng.standard_normal((1, 64, 1)) + 1000.0).astype(np.float32).astype(np.float64)
    g = rng.standard_normal((1, 64, 1)).astype(np.float32)
    mask, mean = np.ones((1, 64), bool), np.float32(x.mean())
    observed = (g[0, :, 0] * x[0, :, 0].astype(np.float32)).sum() - mean * g[0, :, 0].sum()
    exact_value = float((g[0, :, 0].astype(np.float64) * (x[0, :, 0] - float(mean))).sum())
    errors = {}
    with precise():
        for form in (forms.grad_weight_raw, forms.grad_weight_centred):
            pair = bound(jax.vmap(form, in_axes=(0, 0, 0, None, None), axis_name=AXIS))(
                arithmetic("float32", n=64, ranks=1, grade="C"),
                exact(g.astype(np.float64)),
                exact(x),
                exact(mask),
                exact(jnp.asarray([float(mean)])),
                exact(jnp.asarray([1.0])),
            )
            errors[form] = float(pair.error[0, 0])
    assert abs(float(observed) - exact_value) <= errors[forms.grad_weight_raw]
    assert errors[forms.grad_weight_raw] > 100 * errors[forms.grad_weight_centred]

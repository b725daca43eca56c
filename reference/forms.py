r"""Forms: the algebraically equal ways in which right subjects compute a stage, for the bound only.

Each function is the per-rank computation under a mapped axis, as in `reference.batchnorm`; a test shows that
every form's value equals the reference's, gradients included. At the end of a stage the bounds of all forms
are merged by an elementwise maximum and the next stage starts from it, so mixtures are covered.

Derivations of the named sub-computations (rules in `reference.rules`), with D the depth and u the roundoff:

`mean_sum`. Plain sums err by D u sum|x|. A running (Welford) or merged mean rounds u|mean_k| a step, which
    weighs k in n times the mean: at most D u sum|x|; and 2u|x_k - mean_(k-1)|/k a step, together at most
    2u (2 + ln n) sum|x| by |mean_(k-1)| <= sum|x|/(k-1). A merge of two ranks as mean_a + delta n_b/n
    rounds 3u|delta| n_b, and |delta| is at most twice the largest distance of a rank's mean from the mean
    (`shift`): 6u n shift.

`common_mean_square_sum`, sum (x - m)^2 with one rounded mean m + e on all ranks: sum (d - e)^2 = sum d^2 + n
    e^2 exactly, as sum d = 0; so the mean's error enters in second order only, and each term meets three
    roundings (difference, twice, and product) and the D of the sum.

`merged_square_sum`, M2 = sum_b M2_b + sum over merges w delta^2 with w = n_a n_b/(n_a + n_b): the errors e_a
    and e_b of the two means enter in first order. By Cauchy-Schwarz over the merges, as sum w delta^2 <= M2,
    |error| <= 2 sqrt(M2) sqrt(S) + S with S = sum w (e_a + e_b)^2, and w (e_a + e_b)^2 <= n_a e_a^2 + n_b
    e_b^2. With e_b <= D u mean|x|_b, one level of merges adds (D u)^2 sum x^2 at most. Over a tree of L
    levels, where e at level l is at most (3 l + 2) u, sqrt(S) is at most sqrt(3) (L + 1)^1.5 u sqrt(sum
    x^2); over a chain of n steps it is n^1.5 u mean|x| / sqrt(12): both below (D + 4) u sqrt(sum x^2) of
    their grade. A merge of ranks, whose means err by 6u shift more, adds sqrt(n) 6u shift. Relative
    roundings: D of the additions and 8 of a merge's own products. A merge forms n_a n_b delta^2, at most
    2 n sum x^2: where that overflows the element is undecided.

`repeated`, a term of a sum that occurs t times: the reference multiplies, a subject adds it t times. So its
    error is t times the term's, and t - 1 additions more may be flushed; the sum's depth is that of all.

`inverse_root` and `inverse_root_at_once`, 1/sqrt(var + eps) and rsqrt(var + eps): a centred variance is a
    sum of squares and never negative, so the interval of var + eps starts at max(var - e, 0) + eps.

`root_gradient`, dvar = -1/2 S invstd^3 with S = sum(g weight (x - mean)), as automatic differentiation makes
    it of the scale: S (-1/2 invstd^3) of rsqrt, S (-1/2 var^-3/2) of var^-1/2, S (r r) / (2 sqrt) of 1/sqrt;
    a division by sqrt divides the products twice, before the sum (`along`, S invstd^2). The error of invstd
    enters three times. Roundings: four of cube (or power) and products, and three of a detour by the standard
    deviation, (dvar 2 std) / (2 std). Where half the cube may lie below the smallest normal, it may be
    flushed: all of dvar may be lost, but no more than dvar, however large S is. Where the cube may
    overflow the element is undecided. Whether the weight is multiplied into S before its sum (`before`) or
    after (`after`) matters to over- and underflow.

Raw products (grade C), sum(g x) - mean sum(g) in place of sum(g (x - mean)), are what autograd makes of the
    folded output, and to the gradient what E[x^2] - E[x]^2 is to the variance: the error is D u (sum|g x| +
    |mean| sum|g|), however small the difference. The gradient through E[x^2] - E[x]^2 is 2 dvar x - 2 dvar
    mean, in which the error of dvar acts on x - mean (`folded`); a clamp at zero passes none where rounding
    made the variance negative.

`folded`, x s + (b - m s) with one rounded scale s + e_s in both products: the error of the scale acts on x -
    m, not on x and m apart. Each product rounds u|x s| and u|m s|, the difference u|b - m s|, the sum u|y|.

References:
    Chan, Golub and LeVeque, Algorithms for computing the sample variance, The American Statistician 37
    (1983). Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 1.9 and chapter 4.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from reference.batchnorm import AXIS, counted

Array = jax.Array


def _counted(values: Array, mask: Array) -> Array:
    counts: Array = counted(values, mask) if mask.dtype == jnp.bool_ else repeated(values, mask)
    return counts


def _total(values: Array, mask: Array) -> Array:
    total: Array = lax.psum(jnp.sum(_counted(values, mask), axis=0), AXIS)
    return total


@jax.jit
def repeated(values: Array, times: Array) -> Array:
    """Return `values` (positions, C) for a sum in which each occurs so many times; zero where it does not."""
    return counted(values, times)


@jax.jit
def mean_sum(x: Array, mask: Array, n: Array, shift: Array) -> Array:
    """Return sum x over all ranks; `shift` is the largest distance of a rank's mean from the mean."""
    return _total(x, mask)


@jax.jit
def common_mean_square_sum(x: Array, mean: Array, mask: Array, n: Array) -> Array:
    """Return sum (x - mean)^2 over all ranks, all of which use the same mean."""
    return _total((x - mean) * (x - mean), mask)


@jax.jit
def merged_square_sum(x: Array, mean: Array, mask: Array, n: Array, shift: Array) -> Array:
    """Return sum (x - mean)^2 over all ranks, as merged from the moments of blocks or ranks."""
    return _total((x - mean) * (x - mean), mask)


@jax.jit
def inverse_root(var: Array, eps: Array) -> Array:
    """Return 1 / sqrt(var + eps) of a variance that is not negative."""
    return 1.0 / jnp.sqrt(var + eps)


@jax.jit
def inverse_root_at_once(var: Array, eps: Array) -> Array:
    """Return rsqrt(var + eps) of a variance that is not negative."""
    return 1.0 / jnp.sqrt(var + eps)


@jax.jit
def folded(x: Array, m: Array, scale: Array, bias: Array) -> Array:
    """Return x scale + (bias - mean scale), where both products use the same rounded scale."""
    return x * scale + (bias - m * scale)


@jax.jit
def root_gradient(along: Array, before: Array, after: Array, invstd: Array) -> Array:
    """Return -1/2 S invstd^3, the gradient of the variance, from S invstd^2 or from S.

    Args:
        along: (C,), S invstd^2.
        before: (C,), S with the weight multiplied before the sum.
        after: (C,), S with the weight multiplied after the sum.
        invstd: (C,).
    """
    return along * (invstd * -0.5)


def mean(x: Array, mask: Array, n: Array, shift: Array) -> Array:
    """Return the mean; times 1/n, which rounds once more than a division by n."""
    total: Array = mean_sum(x, mask, n, shift)
    return total * (1.0 / n)


def variance_two_pass(x: Array, m: Array, mask: Array, n: Array) -> Array:
    """Return the biased variance, centred by the common mean."""
    squares: Array = common_mean_square_sum(x, m, mask, n)
    return squares * (1.0 / n)


def variance_merged(x: Array, m: Array, mask: Array, n: Array, shift: Array) -> Array:
    """Return the biased variance by Welford's or Chan's update."""
    squares: Array = merged_square_sum(x, m, mask, n, shift)
    return squares * (1.0 / n)


def variance_one_pass(x: Array, m: Array, mask: Array, n: Array) -> Array:
    """Return E[x^2] - E[x]^2, which cancels where |mean| is large: grade C only."""
    return _total(x * x, mask) * (1.0 / n) - m * m


def inverse_root_unclamped(var: Array, eps: Array) -> Array:
    """Return 1 / sqrt(var + eps) of a variance that cancellation can make negative: grade C only."""
    return 1.0 / jnp.sqrt(var + eps)


def output_direct(x: Array, m: Array, invstd: Array, weight: Array, bias: Array) -> Array:
    """Return (x - mean) invstd weight + bias."""
    return ((x - m) * invstd) * weight + bias


def output_weighted_first(x: Array, m: Array, invstd: Array, weight: Array, bias: Array) -> Array:
    """Return weight (x - mean) invstd + bias, which may overflow on the way to a moderate number."""
    return ((x - m) * weight) * invstd + bias


def output_folded(x: Array, m: Array, invstd: Array, weight: Array, bias: Array) -> Array:
    """Return x scale + (bias - mean scale) with scale = invstd weight, as torch's native CPU kernel does."""
    result: Array = folded(x, m, invstd * weight, bias)
    return result


def cotangent_mean(g: Array, mask: Array, n: Array) -> Array:
    """Return mean g over all ranks."""
    return _total(g, mask) * (1.0 / n)


def projection_normalised(g: Array, x: Array, mask: Array, m: Array, invstd: Array, n: Array) -> Array:
    """Return mean (g xhat) over all ranks."""
    return _total(g * ((x - m) * invstd), mask) * (1.0 / n)


def projection_centred(g: Array, x: Array, mask: Array, m: Array, invstd: Array, n: Array) -> Array:
    """Return mean (g (x - mean)) invstd over all ranks."""
    return _total(g * (x - m), mask) * (1.0 / n) * invstd


def projection_raw(g: Array, x: Array, mask: Array, m: Array, invstd: Array, n: Array) -> Array:
    """Return (mean (g x) - mean mean(g)) invstd over all ranks: raw products, grade C only."""
    return (_total(g * x, mask) * (1.0 / n) - m * (_total(g, mask) * (1.0 / n))) * invstd


def grad_input_means(
    g: Array, x: Array, m: Array, invstd: Array, weight: Array, g_mean: Array, projection: Array, n: Array
) -> Array:
    """Return (g - mean g - xhat mean(g xhat)) (invstd weight)."""
    return (g - g_mean - ((x - m) * invstd) * projection) * (invstd * weight)


def grad_input_sums(
    g: Array, x: Array, m: Array, invstd: Array, weight: Array, g_mean: Array, projection: Array, n: Array
) -> Array:
    """Return (n g - sum g - xhat sum(g xhat)) (invstd weight / n)."""
    inner = g * n - g_mean * n - ((x - m) * invstd) * (projection * n)
    return inner * (invstd * weight * (1.0 / n))


def chain_sums(
    g: Array, x: Array, mask: Array, m: Array, invstd: Array, weight: Array, n: Array
) -> tuple[Array, Array]:
    """Return dvar / n and dmean / n of `grad_input_chain`, sums over all ranks."""
    weighted, centred = g * weight, x - m
    along = _total(((weighted * centred) * invstd) * invstd, mask)
    before, after = _total(weighted * centred, mask), _total(g * centred, mask) * weight
    dvar = root_gradient(along, before, after, invstd)
    residue = _total(x - m, mask)
    dmean = _total(weighted * invstd, mask) * -1.0 + (dvar * -2.0) * (1.0 / n) * residue
    return dvar * (1.0 / n), dmean * (1.0 / n)


def grad_input_chain(
    g: Array, x: Array, m: Array, invstd: Array, weight: Array, dvar: Array, dmean: Array, training: Array
) -> Array:
    """Return the gradient as automatic differentiation builds it, through the variance and the mean.

    With gw = g weight: dvar = -1/2 sum(gw (x - mean)) invstd^3,
    dmean = -sum(gw) invstd - 2 dvar sum(x - mean) / n, dx = gw invstd + 2 dvar (x - mean) / n + dmean / n.
    The sum of x - mean is zero but for rounding. `dvar` and `dmean` come divided by n (`chain_sums`).
    """
    through = dvar * ((x - m) * 2.0) + dmean
    return (g * weight) * invstd + jnp.where(training, through, 0.0)


def chain_sums_raw(
    g: Array, x: Array, mask: Array, m: Array, invstd: Array, weight: Array, n: Array
) -> tuple[Array, Array]:
    """Return dvar / n and -mean(g weight) invstd of `grad_input_raw`: raw products, grade C only."""
    raw = (_total(g * x, mask) - m * _total(g, mask)) * weight
    dvar: Array = root_gradient((raw * invstd) * invstd, raw, raw, invstd)
    dmean = _total((g * weight) * invstd, mask) * -1.0
    return dvar * (1.0 / n), dmean * (1.0 / n)


def grad_input_raw(
    g: Array, x: Array, m: Array, invstd: Array, weight: Array, dvar: Array, dmean: Array, training: Array
) -> Array:
    """Return the gradient through E[x^2] - E[x]^2, with 2 dvar x - 2 dvar mean: grade C only."""
    through = folded(x, m, dvar * 2.0, dmean)
    return (g * weight) * invstd + jnp.where(training, through, 0.0)


def grad_input_scaled_first(
    g: Array, x: Array, m: Array, invstd: Array, weight: Array, dvar: Array, dmean: Array, training: Array
) -> Array:
    """Return `grad_input_chain` of weight (x - mean) invstd: the cotangent meets invstd first."""
    through = dvar * ((x - m) * 2.0) + dmean
    return (g * invstd) * weight + jnp.where(training, through, 0.0)


def grad_weight_scaled_first(g: Array, x: Array, mask: Array, m: Array, invstd: Array) -> Array:
    """Return sum ((g invstd) (x - mean)) of this rank, as weight (x - mean) invstd differentiates."""
    return jnp.sum(_counted((g * invstd) * (x - m), mask), axis=0)


def grad_weight_raw(g: Array, x: Array, mask: Array, m: Array, invstd: Array) -> Array:
    """Return (sum (g x) - mean sum g) invstd of this rank: raw products, grade C only."""
    total: Array = jnp.sum(_counted(g, mask), axis=0)
    return (jnp.sum(_counted(g * x, mask), axis=0) - m * total) * invstd


def grad_weight_normalised(g: Array, x: Array, mask: Array, m: Array, invstd: Array) -> Array:
    """Return sum (g xhat) of this rank."""
    return jnp.sum(_counted(g * ((x - m) * invstd), mask), axis=0)


def grad_weight_centred(g: Array, x: Array, mask: Array, m: Array, invstd: Array) -> Array:
    """Return sum (g (x - mean)) invstd of this rank."""
    return jnp.sum(_counted(g * (x - m), mask), axis=0) * invstd


def grad_bias(g: Array, mask: Array) -> Array:
    """Return sum g of this rank."""
    return jnp.sum(_counted(g, mask), axis=0)


def unbiased(var: Array, n: Array, below: Array) -> Array:
    """Return var n / (n - 1), with `below` for n - 1: the factor rounds twice and its product once."""
    return var * (n * (1.0 / below))


def buffer_weighted(old: Array, new: Array, momentum: Array, rest: Array) -> Array:
    """Return (1 - momentum) old + momentum new, with `rest` for 1 - momentum."""
    return rest * old + momentum * new


def buffer_stepped(old: Array, new: Array, momentum: Array, rest: Array) -> Array:
    """Return old + momentum (new - old)."""
    return old + momentum * (new - old)

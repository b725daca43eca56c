"""Rules: how each primitive carries a value and its error bound.

A rule takes the arithmetic, the equation and the arguments' pairs, and returns the results' pairs. Each
rule's soundness is a Hypothesis test in four dtypes. The named rules stand for a whole sub-computation, by
the name of its `jax.jit`-ed function in `reference.forms`, where each derivation is written.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from reference.batchnorm import counted
from reference.pair import Array, Pair, Rule, error_of, evaluate, exact, rounded, undecided_beyond
from reference.rounding import Arithmetic


def _add(arithmetic: Arithmetic, equation: Any, a: Pair, b: Pair) -> list[Pair]:
    """Add or subtract; a term that is exactly zero causes no rounding."""
    value = a.value - b.value if equation.primitive.name == "sub" else a.value + b.value
    free = _is_exactly(a, 0.0) | _is_exactly(b, 0.0)
    return [_rounded_unless(free, value, error_of(a) + error_of(b), arithmetic)]


def _mul(arithmetic: Arithmetic, equation: Any, a: Pair, b: Pair) -> list[Pair]:
    """Multiply; a factor that is exactly 0, 1 or -1 causes no rounding."""
    error: Array | float = 0.0
    if b.error is not None:
        error = error + jnp.abs(a.value) * b.error
    if a.error is not None:
        error = error + (jnp.abs(b.value) + error_of(b)) * a.error
    free = _is_exactly(a, 0.0) | _is_exactly(b, 0.0) | _is_exactly(a, 1.0) | _is_exactly(b, 1.0)
    return [_rounded_unless(free, a.value * b.value, error, arithmetic)]


def _is_exactly(pair: Pair, magnitude: float) -> Array:
    equal = jnp.abs(pair.value) == magnitude if magnitude else pair.value == 0.0
    return equal if pair.error is None else equal & (pair.error == 0.0)


def _rounded_unless(free: Array, value: Array, error: Array | float, arithmetic: Arithmetic) -> Pair:
    """Return the pair after a rounding, where it is not free; 0 times infinity is undecided, too."""
    rounding = arithmetic.u * (jnp.abs(value) + error) + arithmetic.eta
    total = error + jnp.where(free, 0.0, rounding)
    return Pair(value, undecided_beyond(value, total, arithmetic.largest))


def _times(magnitude: Array | float, error: Array | float) -> Array | float:
    """Return magnitude * error where an infinite error stays infinite, also times zero."""
    return error if isinstance(error, float) and error == 0.0 else _nan_is_infinite(magnitude * error)


def _nan_is_infinite(error: Array | float) -> Array:
    return jnp.where(jnp.isnan(error), jnp.inf, error)


def _square(arithmetic: Arithmetic, equation: Any, a: Pair) -> list[Pair]:
    if equation.params.get("y", 2) != 2:
        raise NotImplementedError(f"Expected a square, but got integer_pow y={equation.params['y']!r}.")
    return _mul(arithmetic, equation, a, a)


def _div(arithmetic: Arithmetic, equation: Any, a: Pair, b: Pair) -> list[Pair]:
    value, eb = a.value / b.value, error_of(b)
    nearest = jnp.abs(b.value) - eb
    error = (error_of(a) + _times(jnp.abs(value), eb)) / jnp.where(nearest > 0, nearest, 1.0)
    error = jnp.where(nearest > 0, error, jnp.inf)
    return [rounded(value, error, arithmetic, units=arithmetic.div)]


def _sqrt(arithmetic: Arithmetic, equation: Any, a: Pair) -> list[Pair]:
    value, e = jnp.sqrt(a.value), error_of(a)
    low = a.value - e
    error = jnp.where(low < 0, jnp.inf, value - jnp.sqrt(jnp.maximum(low, 0.0)))
    return [rounded(value, error, arithmetic, units=arithmetic.sqrt)]


def _rsqrt(arithmetic: Arithmetic, equation: Any, a: Pair) -> list[Pair]:
    value, e = 1.0 / jnp.sqrt(a.value), error_of(a)
    low = a.value - e
    error = jnp.where(low > 0, 1.0 / jnp.sqrt(jnp.where(low > 0, low, 1.0)) - value, jnp.inf)
    return [rounded(value, error, arithmetic, units=arithmetic.rsqrt)]


def _reduce_sum(arithmetic: Arithmetic, equation: Any, a: Pair) -> list[Pair]:
    axes = tuple(int(axis) for axis in equation.params["axes"])
    value, e = jnp.sum(a.value, axis=axes), error_of(a)
    length = 1
    for axis in axes:
        length *= a.value.shape[axis]
    magnitude = jnp.sum(jnp.abs(a.value) + e, axis=axes)
    carried = jnp.sum(jnp.broadcast_to(e, a.value.shape), axis=axes)
    flushed = jnp.where(magnitude > 0, length * arithmetic.eta, 0.0)  # a sum of exact zeros is zero
    error = carried + arithmetic.depth_u * magnitude + flushed
    return [Pair(value, undecided_beyond(magnitude, error, arithmetic.largest))]  # partial sums, in any order


def _psum(arithmetic: Arithmetic, equation: Any, *arguments: Pair) -> list[Pair]:
    """Sum over the mapped axis: its roundings are charged by the reduction within the rank (`depth`)."""
    axes = tuple(int(axis) for axis in equation.params["axes"])
    results = []
    for a in arguments:
        value = jnp.sum(a.value, axis=axes)
        error = jnp.sum(jnp.broadcast_to(error_of(a), a.value.shape), axis=axes)
        magnitude = jnp.sum(jnp.abs(a.value), axis=axes)  # partial sums, in any order of the ranks
        results.append(Pair(value, undecided_beyond(magnitude, error, arithmetic.largest)))
    return results


def _select(arithmetic: Arithmetic, equation: Any, which: Pair, *choices: Pair) -> list[Pair]:
    shape = choices[0].value.shape
    errors = [jnp.broadcast_to(error_of(choice), shape) for choice in choices]
    value = equation.primitive.bind(which.value, *(choice.value for choice in choices), **equation.params)
    return [Pair(value, equation.primitive.bind(which.value, *errors, **equation.params))]


def _same_on_errors(arithmetic: Arithmetic, equation: Any, a: Pair) -> list[Pair]:
    """Move elements without changing them."""
    error = jnp.broadcast_to(error_of(a), a.value.shape)
    bind = equation.primitive.bind
    return [Pair(bind(a.value, **equation.params), bind(error, **equation.params))]


def _keep_error(arithmetic: Arithmetic, equation: Any, a: Pair) -> list[Pair]:
    """Change the sign, or drop it."""
    return [Pair(equation.primitive.bind(a.value, **equation.params), a.error)]


def _max(arithmetic: Arithmetic, equation: Any, a: Pair, b: Pair) -> list[Pair]:
    return [Pair(jnp.maximum(a.value, b.value), jnp.maximum(error_of(a), error_of(b)))]


def _repeated(arithmetic: Arithmetic, body: Any, values: Pair, times: Pair) -> list[Pair]:
    value = evaluate(body, values, times)
    often = times.value[..., None]
    error = jnp.where(often > 0, _times(often, jnp.broadcast_to(error_of(values), value.shape)), 0.0)
    flushed = jnp.where(jnp.abs(value) + error > 0, (jnp.maximum(often, 1.0) - 1.0) * arithmetic.eta, 0.0)
    return [Pair(value, error + flushed)]


def _counted(values: Array, mask: Array) -> Array:
    """Return values (shards, positions, C) as they count in a sum, by a mask as in `batchnorm.moments`."""
    return jax.vmap(counted)(values, mask)


def _mean_sum(arithmetic: Arithmetic, body: Any, x: Pair, mask: Pair, n: Pair, shift: Pair) -> list[Pair]:
    value = evaluate(body, x, mask, n, shift)
    magnitude = jnp.sum(_counted(jnp.abs(x.value) + error_of(x), mask.value), axis=(0, 1))
    carried = jnp.sum(_counted(jnp.broadcast_to(error_of(x), x.value.shape), mask.value), axis=(0, 1))
    steps = arithmetic.depth_u + (4.0 + 2.0 * jnp.log(n.value)) * arithmetic.u
    error = (
        carried + steps * magnitude + 6.0 * arithmetic.u * n.value * shift.value + n.value * arithmetic.eta
    )
    return [Pair(value, undecided_beyond(magnitude, error, arithmetic.largest))]


def _common_mean_square_sum(
    arithmetic: Arithmetic, body: Any, x: Pair, mean: Pair, mask: Pair, n: Pair
) -> list[Pair]:
    value, e = evaluate(body, x, mean, mask, n), error_of(mean)
    carried = _largest_error(x)
    shifted = value + n.value * e * e
    error = n.value * e * e + 2.0 * jnp.sqrt(n.value * value) * carried + n.value * carried * carried
    error += (arithmetic.depth_u + 3.0 * arithmetic.u) * shifted + _underflow(arithmetic, n, value)
    return [Pair(value, undecided_beyond(value, _nan_is_infinite(error), arithmetic.largest))]


def _merged_square_sum(
    arithmetic: Arithmetic, body: Any, x: Pair, mean: Pair, mask: Pair, n: Pair, shift: Pair
) -> list[Pair]:
    value = evaluate(body, x, mean, mask, n, shift)
    squares = jnp.sum(_counted(x.value * x.value, mask.value), axis=(0, 1))
    steps = arithmetic.depth_u + 4.0 * arithmetic.u
    delta = steps * jnp.sqrt(squares) + 6.0 * arithmetic.u * jnp.sqrt(n.value) * shift.value
    delta += jnp.sqrt(n.value) * (_largest_error(x) + arithmetic.eta)
    error = 2.0 * jnp.sqrt(value) * delta + delta * delta
    error += (steps + 4.0 * arithmetic.u) * (value + error) + _underflow(arithmetic, n, value)
    # n_a n_b delta^2 is an intermediate of a merge, also of one with an empty block whose mean is 0.
    error = undecided_beyond(2.0 * n.value * squares, _nan_is_infinite(error), arithmetic.largest)
    return [Pair(value, undecided_beyond(value, error, arithmetic.largest))]


def _largest_error(x: Pair) -> Array | float:
    return 0.0 if x.error is None else jnp.max(jnp.broadcast_to(x.error, x.value.shape), axis=(0, 1))


def _underflow(arithmetic: Arithmetic, n: Pair, value: Array) -> Array:
    """Flushed differences and squares: (d + eta)^2 + eta, summed."""
    return 2.0 * jnp.sqrt(n.value * value) * arithmetic.eta + 2.0 * n.value * arithmetic.eta


def _inverse_root(arithmetic: Arithmetic, body: Any, var: Pair, eps: Pair) -> list[Pair]:
    return _bounded_inverse_root(arithmetic, body, var, eps, units=arithmetic.sqrt + arithmetic.div)


def _inverse_root_at_once(arithmetic: Arithmetic, body: Any, var: Pair, eps: Pair) -> list[Pair]:
    return _bounded_inverse_root(arithmetic, body, var, eps, units=arithmetic.rsqrt)


def _bounded_inverse_root(
    arithmetic: Arithmetic, body: Any, var: Pair, eps: Pair, *, units: Any
) -> list[Pair]:
    value = evaluate(body, var, eps)
    low = jnp.maximum(var.value - error_of(var), 0.0) + jnp.maximum(eps.value - error_of(eps), 0.0)
    low = low * (1.0 - arithmetic.u) - arithmetic.eta
    high = var.value + error_of(var) + eps.value + error_of(eps)
    high = high * (1.0 + arithmetic.u) + arithmetic.eta
    above = 1.0 / jnp.sqrt(jnp.where(low > 0, low, 1.0)) - value
    error = jnp.where(low > 0, jnp.maximum(above, value - 1.0 / jnp.sqrt(high)), jnp.inf)
    error = jnp.where(jnp.isinf(error_of(var)), jnp.inf, error)  # undecided stays so, clamped or not
    return [rounded(value, _nan_is_infinite(error), arithmetic, units=units)]


def _root_gradient(
    arithmetic: Arithmetic, body: Any, along: Pair, before: Pair, after: Pair, invstd: Pair
) -> list[Pair]:
    (scale,) = _mul(arithmetic, body, invstd, exact(jnp.float64(-0.5)))
    (product,) = _mul(arithmetic, body, along, scale)  # what `body` says, which a test compares
    s, es = invstd.value, error_of(invstd)
    low, high = jnp.maximum(s - es, 0.0), s + es
    error = error_of(product)
    for total in (before, after):
        carried = 0.5 * (((error_of(total) * high) * high) * high)
        carried += 1.5 * ((jnp.abs(total.value) * high) * high) * es
        held = jnp.abs(product.value) + carried
        flushed = 0.5 * low * low * low * (1.0 - 4.0 * arithmetic.u) < arithmetic.eta
        each = carried + 7.0 * arithmetic.u * held + jnp.where(flushed, held, 0.0) + 3.0 * arithmetic.eta
        error = jnp.maximum(error, jnp.where(_is_exactly(total, 0.0), 0.0, _nan_is_infinite(each)))
    cube = high * high * high * (1.0 + 4.0 * arithmetic.u)
    error = undecided_beyond(cube, _nan_is_infinite(error), arithmetic.largest)
    return [Pair(product.value, undecided_beyond(product.value, error, arithmetic.largest))]


def _folded(arithmetic: Arithmetic, body: Any, x: Pair, m: Pair, scale: Pair, bias: Pair) -> list[Pair]:
    y = evaluate(body, x, m, scale, bias)
    es, em, magnitude = error_of(scale), error_of(m), jnp.abs(scale.value) + error_of(scale)
    product = jnp.abs(x.value) * magnitude + error_of(x) * magnitude
    shift = (jnp.abs(m.value) + em) * magnitude
    carried = _times(jnp.abs(x.value - m.value), es) + _times(magnitude, error_of(x) + em)
    rounding = product + 2.0 * shift + jnp.abs(bias.value) + jnp.abs(y) + carried
    error = carried + arithmetic.u * (1.0 + 4.0 * arithmetic.u) * rounding + 4.0 * arithmetic.eta
    error = undecided_beyond(product, error, arithmetic.largest)  # x scale may overflow where y does not
    error = undecided_beyond(shift, error, arithmetic.largest)
    return [Pair(y, undecided_beyond(y, _nan_is_infinite(error), arithmetic.largest))]


RULES: dict[str, Rule] = {
    "add": _add,
    "add_any": _add,
    "sub": _add,
    "mul": _mul,
    "square": _square,
    "integer_pow": _square,
    "div": _div,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "reduce_sum": _reduce_sum,
    "psum": _psum,
    "psum_invariant": _psum,
    "select_n": _select,
    "reshape": _same_on_errors,
    "squeeze": _same_on_errors,
    "transpose": _same_on_errors,
    "convert_element_type": _same_on_errors,
    "copy": _same_on_errors,
    "neg": _keep_error,
    "abs": _keep_error,
    "max": _max,
}

NAMED_RULES: dict[str, Rule] = {
    "repeated": _repeated,
    "mean_sum": _mean_sum,
    "common_mean_square_sum": _common_mean_square_sum,
    "merged_square_sum": _merged_square_sum,
    "inverse_root": _inverse_root,
    "inverse_root_at_once": _inverse_root_at_once,
    "folded": _folded,
    "root_gradient": _root_gradient,
}

r"""The bound: running error analysis as an interpreter of jaxprs.

Definition
----------
A pair (v, e) stands for all numbers a right subject may hold in place of the exact v: |held - v| <= e. Every
primitive maps pairs to pairs; `e is None` means that the number is exact (masks, counts, integers).

Theory of operation
-------------------
`bound(f)(arithmetic, *pairs)` traces `f` to a jaxpr and evaluates it equation by equation with the rules of
`reference.rules`, in float64, while jax traces again: the result compiles with `jax.jit` like any function. A
`jax.jit`-ed function whose name is in the table of named rules is not entered: its own, tighter derivation
replaces that of its parts (`reference.forms` says which and why). A broadcast is put off until a rule needs
the whole shape, so that what is said of a channel is computed once, not for each element.

Rules are sound for first and higher orders: products keep e_a e_b, divisions and roots bound over the whole
interval, and a rounding is charged on |v| + e. An infinite e means undecided and stays so.

References:
    Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3 (running error analysis).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

from reference.pair import Array, Pair, exact
from reference.rounding import Arithmetic
from reference.rules import NAMED_RULES, RULES


def bound(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of (arithmetic, *pairs) that gives the pairs of `function`'s results.

    Args:
        function: A jax function of arrays that returns an array or a tuple of arrays.

    Raises:
        NotImplementedError: While tracing, if `function` uses a primitive without a rule.
    """

    def with_errors(arithmetic: Arithmetic, *pairs: Pair) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*(pair.value for pair in pairs))
        results = interpret(closed, arithmetic, pairs)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return with_errors


def interpret(closed: ClosedJaxpr, arithmetic: Arithmetic, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs that the closed jaxpr's results get from the pairs of its arguments."""
    environment: dict[Any, Pair] = {}
    environment.update(zip(closed.jaxpr.constvars, map(exact, closed.consts), strict=True))
    environment.update(zip(closed.jaxpr.invars, pairs, strict=True))

    def read(atom: Any) -> Pair:
        return exact(jnp.asarray(atom.val)) if isinstance(atom, Literal) else environment[atom]

    for equation in closed.jaxpr.eqns:
        arguments = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        if name not in ELEMENTWISE:
            arguments = list(map(_whole, arguments, equation.invars))
        inner = equation.params.get("name") if name in ("jit", "pjit") else None
        if inner in NAMED_RULES:
            results = NAMED_RULES[inner](arithmetic, equation.params["jaxpr"], *arguments)
        elif name in ("jit", "pjit"):
            results = interpret(equation.params["jaxpr"], arithmetic, arguments)
        elif name == "broadcast_in_dim":
            results = [_spread(arguments[0], equation.params)]
        elif all(pair.error is None for pair in arguments) and name in EXACT_WHEN_EXACT:
            results = [Pair(value, None) for value in _evaluate(equation, arguments)]
        elif name in RULES:
            results = RULES[name](arithmetic, equation, *arguments)
        else:
            raise NotImplementedError(f"Expected a primitive with an error rule, but got {name!r}; add one.")
        environment.update(zip(equation.outvars, results, strict=True))
    return [_whole(read(atom), atom) for atom in closed.jaxpr.outvars]


ELEMENTWISE = frozenset(
    {"add", "add_any", "sub", "mul", "div", "sqrt", "rsqrt", "square", "integer_pow", "neg", "max"}
)
"""Primitives whose rules take pairs that broadcast against each other in place of equal shapes."""


def _spread(pair: Pair, parameters: dict[str, Any]) -> Pair:
    """Return a pair that broadcasts to the shape asked for: what is said of a channel is computed once."""
    kept = parameters["broadcast_dimensions"]
    shape = [1] * len(parameters["shape"])
    for axis, size in zip(kept, pair.value.shape, strict=True):
        shape[axis] = size
    error = None if pair.error is None else jnp.broadcast_to(pair.error, pair.value.shape).reshape(shape)
    return Pair(pair.value.reshape(shape), error)


def _whole(pair: Pair, atom: Any) -> Pair:
    """Return the pair in the shape that the jaxpr gives it."""
    shape = atom.aval.shape
    if jnp.shape(pair.value) == shape:
        return pair
    error = None if pair.error is None else jnp.broadcast_to(pair.error, shape)
    return Pair(jnp.broadcast_to(pair.value, shape), error)


EXACT_WHEN_EXACT = frozenset(
    {
        *("reshape", "squeeze", "transpose", "slice", "concatenate", "iota", "copy"),
        *("select_n", "convert_element_type", "stop_gradient", "neg", "abs", "max", "min"),
        *("gt", "lt", "ge", "le", "eq", "ne", "and", "or", "not"),
    }
)


def _evaluate(equation: Any, arguments: Sequence[Pair]) -> Sequence[Array]:
    values = equation.primitive.bind(*(pair.value for pair in arguments), **equation.params)
    return values if equation.primitive.multiple_results else [values]

"""Properties of numbers: every element of a quantity is as near the reference as rounding allows.

Gradients of parameters are those of the rank alone, or their sum or mean over the group, as the contract
says; the expectation has them so.
"""

from __future__ import annotations

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.bounded import bounded
from properties.judge.property import BOUNDED, COMPLETE, Property
from properties.observation import Observation
from properties.verdict import Verdict


def _number(
    name: str, quantity: str, words: str, *, expected: str, holds: str, quantities: str, not_judged: str
) -> Property:
    """Return the property that |observed - expected| <= bound holds on every rank and step; see `bounded`.

    Args:
        name: The property's id.
        quantity: Which tensors, by the first part of their names, as `grad_input` of `grad_input.0`.
        words: What they are called in a clause.
        expected: As in `Property`, like the others.
        holds: What must hold.
        quantities: What it looks at.
        not_judged: When it is not judged.
    """

    def judge(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
        del contract
        return bounded(name, quantity, case=case, observation=observation, expected=expected)

    return Property(
        id=name,
        judge=judge,
        holds=holds,
        violation=f"{words} is farther from the reference than rounding allows",
        must="|observed - expected| <= bound must hold.",
        quantities=quantities,
        not_judged=not_judged,
        expected=expected,
    )


FORWARD = _number(
    "forward",
    "output",
    "the output",
    expected="reference.forward(case)",
    holds="Every element of every output is within its bound of the reference.",
    quantities="`output.STEP`",
    not_judged=BOUNDED + COMPLETE,
)

RUNNING_MEAN = _number(
    "running_mean",
    "running_mean",
    "the running mean",
    expected="the reference's running mean",
    holds="The running mean is within its bound of the reference after every step.",
    quantities="`running_mean.STEP`, `running_mean.end`",
    not_judged="Without running buffers. " + BOUNDED + COMPLETE,
)

RUNNING_VAR = _number(
    "running_var",
    "running_var",
    "the running variance",
    expected="the reference's running variance",
    holds="The running variance is within its bound of the reference after every step.",
    quantities="`running_var.STEP`, `running_var.end`",
    not_judged="Without running buffers. " + BOUNDED + COMPLETE,
)

GRAD_INPUT = _number(
    "grad_input",
    "grad_input",
    "the input's gradient",
    expected="the reference's gradient of the input, by jax.vjp",
    holds="Every element of the gradient of every input is within its bound of the reference.",
    quantities="`grad_input.STEP`",
    not_judged="Where the input requires no gradient, or the step has no backward. " + BOUNDED + COMPLETE,
)

GRAD_WEIGHT = _number(
    "grad_weight",
    "grad_weight",
    "the weight's gradient",
    expected="the reference's gradient of the weight, by jax.vjp",
    holds="The gradient of the weight is within its bound of the reference.",
    quantities="`grad_weight.STEP`",
    not_judged="Without a weight, or with a frozen one. " + BOUNDED + COMPLETE,
)

GRAD_BIAS = _number(
    "grad_bias",
    "grad_bias",
    "the bias's gradient",
    expected="the reference's gradient of the bias, by jax.vjp",
    holds="The gradient of the bias is within its bound of the reference.",
    quantities="`grad_bias.STEP`",
    not_judged="Without a bias, or with a frozen one. " + BOUNDED + COMPLETE,
)

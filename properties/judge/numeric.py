"""Properties of numbers: every element of a quantity is as near the reference as rounding allows.

Gradients of parameters are those of the rank alone, or their sum or mean over the group, as the contract
says; the expectation has them so.
"""

from __future__ import annotations

from collections.abc import Callable

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.bounded import bounded
from properties.observation import Observation
from properties.verdict import Verdict


def numeric(
    quantity: str, *, property_id: str = ""
) -> Callable[[Case, Observation, Expected, Contract], Verdict | None]:
    """Return the property that |observed - expected| <= bound holds on every rank and step; see `bounded`.

    Args:
        quantity: Which tensors, by the first part of their names, as `grad_input` of `grad_input.0`.
        property_id: The property's id; that of the quantity if empty.
    """

    def judge(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
        del contract
        name = property_id or quantity
        return bounded(name, quantity, case=case, observation=observation, expected=expected)

    return judge

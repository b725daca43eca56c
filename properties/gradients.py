"""Properties `grad_input`, `grad_weight`, `grad_bias`: gradients as near the reference as rounding allows.

Gradients of parameters are those of the rank alone, or their sum or mean over the group, as the contract
says; the expectation has them so.
"""

from __future__ import annotations

from properties.case import Case
from properties.domain import Contract
from properties.elementwise import bounded
from properties.expected import Expected
from properties.observation import Observation
from properties.verdict import Verdict


def grad_input(
    case: Case, observation: Observation, expected: Expected, contract: Contract
) -> Verdict | None:
    """Return whether |x.grad - expected| <= bound holds on every rank and step; see `elementwise`."""
    del contract
    return bounded("grad_input", "grad_input", case=case, observation=observation, expected=expected)


def grad_weight(
    case: Case, observation: Observation, expected: Expected, contract: Contract
) -> Verdict | None:
    """Return whether |weight.grad - expected| <= bound holds on every rank and step; see `elementwise`."""
    del contract
    return bounded("grad_weight", "grad_weight", case=case, observation=observation, expected=expected)


def grad_bias(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
    """Return whether |bias.grad - expected| <= bound holds on every rank and step; see `elementwise`."""
    del contract
    return bounded("grad_bias", "grad_bias", case=case, observation=observation, expected=expected)

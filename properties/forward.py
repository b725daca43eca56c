"""Property `forward`: every element of every output is as near the reference as rounding allows."""

from __future__ import annotations

from properties.case import Case
from properties.domain import Contract
from properties.elementwise import bounded
from properties.expected import Expected
from properties.observation import Observation
from properties.verdict import Verdict


def forward(case: Case, observation: Observation, expected: Expected, contract: Contract) -> Verdict | None:
    """Return whether |output - expected| <= bound holds on every rank and step; see `elementwise`."""
    del contract
    return bounded("forward", "output", case=case, observation=observation, expected=expected)

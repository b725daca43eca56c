"""The transport: how a judge, wherever it is, speaks to a group of ranks, wherever they are.

`verify.ranks.group` implements it for one machine, by sockets and memory files. Under torchrun it will be a
control group beside rank 0.
"""

from __future__ import annotations

from typing import Protocol

from properties.case import Case
from properties.observation import Ending, Observation
from verify.ranks.messages import Description


class Transport(Protocol):
    """A group of ranks that have loaded one subject; one case at a time."""

    def describe(self) -> Description:
        """Return what the ranks say of the subject; raises SubjectError if they cannot load it."""

    def submit(self, case: Case, *, seconds: float) -> None:
        """Have the ranks run `case`, for at most `seconds`; returns at once."""

    def observation(self) -> Observation:
        """Return what the ranks gave back for the submitted case, or how they ended; waits a bounded time."""

    def ending(self, rank: int) -> Ending | None:
        """Return how the submitted case has ended on `rank` so far, or None; never waits."""

"""A ticket: a case on its way through the ranks, what it asks of them, and how long it may take."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from properties.case import Case
from properties.observation import Observation
from properties.probe import second
from verify.ranks.group import RankGroup
from verify.ranks.messages import Target

MOST_AHEAD = 1 << 20
"""Elements of a case that may be in flight beside others: memory is given back between larger ones."""
# A subject may loop over its samples in Python, on a crowded machine; over those of a large case it cannot.
_SECONDS_AN_ELEMENT, _OF_SO_MANY, _SECONDS_AN_ELEMENT_BEYOND = 1e-4, 1 << 17, 2e-6
_SECONDS_A_CROWDED_RANK = 0.25
_CORES = os.cpu_count() or 1


@dataclass(slots=True, eq=False)
class Ticket:
    """A submitted case, and the way to what the ranks give back for it, as a future of `concurrent.futures`.

    Attributes:
        target, case: What runs.
        timeout: Seconds that a small case may take.
        warm_up: Seconds that this one gets beside.
        advance: Waits for the first case in the queue, and gives its ticket the outcome.
        group: Whose ranks have it; None until it is sent, and when that group was lost before its turn.
        outcome: What came of it, once it is known.
        killed: A rank was killed while it ran.
        again: It runs once more for that reason.
    """

    target: Target
    case: Case
    _: KW_ONLY
    timeout: float
    warm_up: float = 0.0
    advance: Callable[[], None]
    group: RankGroup | None = None
    outcome: Observation | Exception | None = None
    killed: bool = False
    again: bool = False

    def result(self) -> Observation:
        """Return what the ranks gave back, or how they ended; waits, bounded, for it and the cases before it.

        Raises:
            SubjectError: If the subject could not be loaded.
            RankError: If our own machinery failed; the case is undecided.
        """
        while self.outcome is None:
            self.advance()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    @property
    def seconds(self) -> float:
        """What it may take."""
        return seconds_for(self.case, self.timeout) + self.warm_up

    def renew(self) -> None:
        """Have it run once more, since a rank was killed."""
        self.group, self.killed, self.again = None, False, True

    @property
    def key(self) -> tuple[Target, int]:
        """Which ranks run it."""
        return self.target, self.case.world_size

    @property
    def allows_pipelining(self) -> bool:
        """Whether another case may be sent to the same ranks behind it: a probe is followed by its second."""
        return self.group is not None and second(self.case) is None and self.case.elements <= MOST_AHEAD


def checkpoints(case: Case) -> bool:
    """Return whether a step of it runs under `torch.utils.checkpoint`."""
    return any(step.recompute for step in case.steps)


def seconds_for(case: Case, timeout: float) -> float:
    """Return what `case` may take where a small one may take `timeout` seconds."""
    crowded = max(0, case.world_size - _CORES)
    few = min(case.elements, _OF_SO_MANY)
    work = _SECONDS_AN_ELEMENT * few + _SECONDS_AN_ELEMENT_BEYOND * (case.elements - few)
    return timeout + work + _SECONDS_A_CROWDED_RANK * crowded

"""A deadline: when a campaign must end by its clock, and whether that is its budget or the net behind it.

Rules
-----
- The budget's seconds are those of a campaign, which may have been interrupted and resumed; the net's are
  those of one process.
- A budget of seconds is kept, minimising and the case that runs at its end included: cases get what is left
  (`left`), and none begins for which there is no room. What the end cuts off is not counted.
- No verdict rests on it: what the net cuts short is UNDECIDED, unless something was violated before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from verify.config import Budget

MIN_LEFT = 0.05
"""Seconds with which nothing can be begun that would end in time."""


@dataclass(slots=True, kw_only=True)
class Deadline:
    """The clock of one campaign.

    Attributes:
        budget: Whose seconds end it.
        clock: Monotonic seconds.
        began: By the clock; earlier by what an interrupted run of the same campaign took.
    """

    budget: Budget
    clock: Callable[[], float]
    began: float = 0.0
    _opened: float = 0.0

    def start(self) -> None:
        """Begin to count."""
        self.began = self._opened = self.clock()

    def recall(self, elapsed: float) -> None:
        """Note that an interrupted run of the same campaign had taken `elapsed` seconds at this place."""
        self.began = min(self.began, self.clock() - elapsed)

    @property
    def elapsed(self) -> float:
        """Seconds that the campaign has taken."""
        return self.clock() - self.began

    def left(self) -> float:
        """Return the seconds that are left, 0 if it is over; infinite without a limit."""
        now = self.clock()
        limits = ((self.budget.seconds, self.began), (self.budget.net, self._opened))
        return min((max(0.0, since + s - now) for s, since in limits if s is not None), default=math.inf)

    def room_for(self, seconds: float) -> bool:
        """Whether what takes so many seconds may still begin: a budget may be exceeded by a tenth."""
        return self.left() + (self.budget.seconds or 0.0) / 10 >= seconds

    @property
    def over(self) -> bool:
        """Whether nothing more can be begun."""
        return self.left() < MIN_LEFT

    @property
    def cut(self) -> bool:
        """Whether the net is what ended it."""
        net = self.budget.net
        return net is not None and self.clock() - self._opened > net - MIN_LEFT

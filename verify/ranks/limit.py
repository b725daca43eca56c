"""A limit: seconds that processes may take, on a machine that may be slow or have no core to spare.

Rules
-----
- A limit counts the time in which a process could have run. What it spent in a run queue, waiting for a core,
  is added; so a crowded machine makes no hang.
- A process that waits for something else (a peer, a lock, a sleep) gets nothing added; a busy loop reaches
  its limit by its own work. Either way the limit ends: `MOST` times the seconds at the latest.

Theory of operation
-------------------
Linux counts for every thread the nanoseconds that it was runnable without a core: the second number of
`/proc/PID/schedstat`, which is that of the main thread. Of several processes the longest wait counts: those
that wait for each other cannot have gone on faster than the slowest. It is read when the limit is set and
when it seems over, which takes microseconds. Where it cannot be read nothing is added.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence

MOST = 10.0
"""A limit is over after this many times its seconds, however long the processes waited for a core."""
_SHORTEST = 0.02


def unlimited() -> float:
    """Return the seconds that are left where nothing limits them."""
    return math.inf


class Queues:
    """What the main threads of some processes have waited for a core; `close` it."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._files: list[int] = []
        for pid in pids:
            with contextlib.suppress(OSError):
                self._files.append(os.open(f"/proc/{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC))

    def waited(self) -> list[float]:
        """Return the seconds of each process since it began; 0 for one that is gone."""
        return [_waited(file) for file in self._files]

    def close(self) -> None:
        """Close the files; after that nothing has waited."""
        while self._files:
            os.close(self._files.pop())


class Limit:
    """A limit of `seconds` from now on.

    Args:
        seconds: That the processes may take.
        waited: What each of them has waited for a core so far, in seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        seconds: float,
        waited: Callable[[], Sequence[float]] = tuple,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._waited = waited
        self._clock = clock
        self._since = clock()
        self._until = self._since + seconds
        self._before = tuple(waited())

    @property
    def extended(self) -> bool:
        """Whether it lasted longer than its seconds."""
        return self._until > self._since + self.seconds

    def left(self) -> float:
        """Return how many seconds are left, 0 if it is over; what was waited for a core is added first."""
        now = self._clock()
        if now < self._until:
            return self._until - now
        until = self._since + min(self.seconds + self._longest_wait(), MOST * self.seconds)
        if until - now <= 0:
            return 0.0
        self._until = max(until, now + _SHORTEST)
        return self._until - now

    def _longest_wait(self) -> float:
        now = self._waited()
        return max((b - a for a, b in zip(self._before, now, strict=False)), default=0.0)


def _waited(file: int) -> float:
    try:
        return int(os.pread(file, 96, 0).split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0

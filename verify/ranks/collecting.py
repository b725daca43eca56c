"""Collecting: the parent waits for what the ranks of a group answer, and looks at who does not.

Every wait has an end, whatever the ranks do: its limit; a short grace once a rank has failed, in which the
others only waited, since it may be for that one, in vain; and, with patience, the end that
`verify.ranks.patience` finds. A rank that works on while another has failed gets its whole limit: it may hold
a thousand times as much, and is about to fail, too.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Sequence

from verify.ranks.limit import Limit, Queues, unlimited
from verify.ranks.patience import COMPILE_SECONDS, CpuTimes, Late, Patience, Times
from verify.ranks.rank_handle import RankHandle

GRACE_SECONDS = 1.0
_LOOK_SECONDS, _POLL_SECONDS = 0.5, 0.1
_SLACK_SECONDS = 0.2
_CORES = os.cpu_count() or 1


class Collector:
    """Waits for the answers of `ranks`.

    Attributes:
        slowness: By which limits are longer on this machine.
    """

    def __init__(self, ranks: Sequence[RankHandle]) -> None:
        self.slowness = 1.0
        self._ranks = ranks
        self._queues, self._cpu = Queues(()), CpuTimes(())
        self._number = 0
        self._answers, self._watches = selectors.DefaultSelector(), selectors.DefaultSelector()
        for rank in ranks:
            self._answers.register(rank.connection, selectors.EVENT_READ, rank)
            self._watches.register(rank.watch, selectors.EVENT_READ, rank)

    def follow(self, pids: Sequence[int], *, slowness: float) -> None:
        """Take note of the processes of the ranks, once they are known."""
        self.slowness = slowness
        self._queues, self._cpu = Queues(pids), CpuTimes(pids)

    def limit(self, seconds: float) -> Limit:
        """Return the limit of what takes `seconds` where limits were chosen, from now on."""
        return Limit(seconds * self.slowness + _SLACK_SECONDS, self._queues.waited)

    def collect(self, limit: Limit, most: Callable[[], float] = unlimited, *, patient: bool = False) -> Late:
        """Wait until every rank has answered or is gone, `limit` at most, or one has failed and others wait.

        Args:
            limit: Of the wait.
            most: Returns the seconds from now after which the wait ends in any case.
            patient: Go on while the ranks get on with it (`verify.ranks.patience`).

        Returns:
            Why those that are silent are late; nothing if there are none, or if they only wait and another
            rank has failed.
        """
        hurry = min(1.0, limit.left() / 10.0)  # a short limit asks for a short grace
        patience: Patience | None = None
        self.poll(0.0)
        while self._silent:
            failed = any(rank.failed for rank in self._ranks)
            if failed and (self._only_wait(hurry) or not self._silent or most() <= 0):
                break
            left = min(limit.left(), most())
            if not failed:
                self.poll(max(0.0, left))
            if left > 0 or not self._silent:
                continue
            self.look()
            if not patient or most() <= 0:
                return "timeout"
            patience = patience or self._patience(limit.seconds)
            if late := patience.late({rank.number: rank.seen for rank in self._silent}):
                return late
            limit = Limit(patience.pause, self._queues.waited)
        self.look()
        return ""

    def _only_wait(self, hurry: float) -> bool:
        """Give those that are silent a grace, and return whether none of them has worked in it."""
        crowded = max(1.0, len(self._ranks) / _CORES)
        grace = Limit(GRACE_SECONDS * hurry * crowded * self.slowness, self._queues.waited)
        before = self._times()
        while self._silent and (left := grace.left()) > 0:
            self.poll(left)
        busy = self._times().busy_since(before)
        return not any(rank.number in busy for rank in self._silent)

    def _times(self) -> Times:
        return Times(time.monotonic(), self._cpu(), self._queues.waited())

    def look(self) -> None:
        """Look where the silent ranks are: `seen` of each is None if it shows nothing in time."""
        self._number += 1
        looked_at = self._silent
        hopeful = not looked_at or not all(rank.unseen for rank in looked_at)
        for rank in looked_at:
            rank.look(self._number)
        seconds = (_LOOK_SECONDS if hopeful else _POLL_SECONDS) * self.slowness
        limit = Limit(seconds, self._queues.waited)
        while any(rank.silent and rank.seen is None for rank in looked_at) and (left := limit.left()) > 0:
            for key, _ in self._watches.select(min(left, _POLL_SECONDS)):
                key.data.see(self._number)
            self.poll(0.0)
        for rank in looked_at:
            rank.unseen = rank.seen is None

    def poll(self, seconds: float) -> None:
        """Take what ranks answer within so many seconds, or what comes first."""
        for key, _ in self._answers.select(seconds):
            rank: RankHandle = key.data
            rank.receive()
            if rank.gone:
                self._answers.unregister(rank.connection)

    def close(self) -> None:
        """Free what it holds."""
        self._answers.close()
        self._watches.close()
        self._queues.close()
        self._cpu.close()

    @property
    def _silent(self) -> list[RankHandle]:
        return [rank for rank in self._ranks if rank.silent]

    def _patience(self, seconds: float) -> Patience:
        return Patience(
            seconds=seconds,
            compile_seconds=COMPILE_SECONDS * self.slowness,
            cpu=self._cpu,
            waited=self._queues.waited,
        )

"""Patience: whether ranks whose time is over are slow, compile, or hang.

Rules
-----
- No verdict rests on speed. A case that takes longer than its limit violates nothing while a rank gets on
  with it; after `MOST` times the limit it is given up as too slow, which is undecided.
- A group in which every rank waits hangs: with the second look, a quarter of the limit after its end.
- A rank that burns CPU time and comes through no state that it has not been in before spins: the group hangs,
  once that has gone on for as long as the limit.
- A compilation has a limit of its own, and does not count as time of the case.

Theory of operation
-------------------
When the limit is over the parent looks (`verify.ranks.worker.watch`), and then four times in each further
limit. A rank is busy if its process, with the children that it has waited for, has worked for a tenth of the
time since the look before in which it could run. The state of a busy rank is new or known. Of a finite set
of states, which is all that a loop without end has if it counts nothing, the looks have soon seen each one.
A loop without end that counts cannot be told from work: it ends as too slow. A rank that holds the
interpreter lock shows no state, hence none that is new. Where a CPU time cannot be read, a rank waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from verify.ranks import limit
from verify.ranks.messages import Seen

MOST = 6.0
"""A case is too slow after this many times its limit."""
COMPILE_SECONDS = 600.0
"""Seconds that the compilations of a case may take beside."""
BUSY_SHARE = 0.1
"""Of the time in which it could run, what a rank that does not wait spends on a core."""
LOOKS_A_LIMIT = 4
_TICK = 1.0 / os.sysconf("SC_CLK_TCK")

Late = Literal["", "timeout", "slow"]


class CpuTimes:
    """The CPU seconds of some processes, with the children that they have waited for; `close` it."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._files: list[int] = []
        for pid in pids:
            try:
                self._files.append(os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                self._files.append(-1)

    def __call__(self) -> list[float]:
        """Return the seconds of each since it began; 0 for one that is gone."""
        return [_cpu_seconds(file) for file in self._files]

    def close(self) -> None:
        """Close the files."""
        while self._files:
            if (file := self._files.pop()) >= 0:
                os.close(file)


@dataclass(slots=True, kw_only=True)
class Patience:
    """How long ranks may go on with a case whose limit of `seconds` is over now.

    Attributes:
        seconds: The limit.
        cpu: What each rank has used of CPU time so far, in seconds.
        waited: What each has waited for a core so far, in seconds.
        compile_seconds: That compilations may take.
        clock: Monotonic seconds.
    """

    seconds: float
    cpu: Callable[[], Sequence[float]]
    waited: Callable[[], Sequence[float]]
    compile_seconds: float = COMPILE_SECONDS
    clock: Callable[[], float] = time.monotonic
    _before: Times | None = None
    _spent: float = field(init=False)
    _moved: float = field(init=False)
    _compiled: float = 0.0
    _known: dict[int, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._spent = self._moved = self.seconds

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        return self.seconds / LOOKS_A_LIMIT

    def late(self, looks: Mapping[int, Seen | None]) -> Late:
        """Return how the case ends, or nothing if its ranks may go on for another `pause`.

        Args:
            looks: What was seen of each rank that has not answered; None if it could not be looked at.
        """
        now, before = Times(self.clock(), self.cpu(), self.waited()), self._before
        self._before = now
        new = {rank for rank, seen in looks.items() if self._is_new(rank, seen)}
        if before is None:
            return ""
        busy, took = now.busy_since(before) & looks.keys(), now.spent_since(before)
        if any(seen.compiling for seen in looks.values() if seen is not None):
            self._compiled += took
            self._moved = self._spent
            return "slow" if self._compiled >= self.compile_seconds else ""
        self._spent += took
        if busy & new:
            self._moved = self._spent
            return "slow" if self._spent >= MOST * self.seconds else ""
        return "timeout" if not busy or self._spent - self._moved >= self.seconds else ""

    def _is_new(self, rank: int, seen: Seen | None) -> bool:
        known = self._known.setdefault(rank, set())
        if seen is None or seen.state in known:
            return False
        known.add(seen.state)
        return True


@dataclass(frozen=True, slots=True)
class Times:
    """When ranks were looked at, and what each had used of CPU time and waited for a core by then."""

    clock: float
    cpu: Sequence[float]
    waited: Sequence[float]

    def busy_since(self, before: Times) -> set[int]:
        """Return the ranks that have worked since `before`."""
        took = self.clock - before.clock
        used = [b - a for a, b in zip(before.cpu, self.cpu, strict=False)]
        able = [took - queued for queued in self._queued_since(before)]
        return {
            rank
            for rank, (seconds, could) in enumerate(zip(used, able, strict=False))
            if seconds > 0 and seconds >= BUSY_SHARE * could
        }

    def spent_since(self, before: Times) -> float:
        """Return the seconds since `before` without those that a rank has waited for a core, as limits do."""
        took = self.clock - before.clock
        return max(took / limit.MOST, took - max(self._queued_since(before), default=0.0))

    def _queued_since(self, before: Times) -> list[float]:
        return [b - a for a, b in zip(before.waited, self.waited, strict=False)]


def _cpu_seconds(file: int) -> float:
    """Return user and system time, own and of children waited for: fields 14 to 17 of `/proc/PID/stat`."""
    try:
        fields = os.pread(file, 1024, 0).rpartition(b")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) * _TICK
    except (OSError, ValueError):
        return 0.0

"""The pool: runs cases on ranks, several in flight, in the order in which they are submitted.

Rules
-----
- A case is in flight from `submit` to `observation`, in which the parent computes its expected values. More
  may be sent ahead, so that the ranks need not wait while the parent judges the first. Observations come in
  the order of submission.
- What ends a group is told of the case that ended it, and of no other: a case sent ahead to it is sent again.
- SIGKILL comes from outside a process (the kernel's want of memory, a person). A case whose rank or server
  was killed so runs once more on new ranks, and that counts; one that kills its ranks itself does so again.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

import msgspec

from properties.case import Case
from properties.observation import Observation
from properties.probe import second
from verify.errors import RankError, SubjectError
from verify.ranks.endings import LostGroup
from verify.ranks.group import RankGroup
from verify.ranks.group_registry import GroupRegistry, serves
from verify.ranks.limit import unlimited
from verify.ranks.messages import Description, Target, Timed
from verify.ranks.placement import plan
from verify.ranks.server_client import ServerClient
from verify.ranks.shared_tensors import PARTS
from verify.ranks.submission import MOST_AHEAD, Flight, checkpoints, elements, seconds_for

__all__ = ["Description", "LostGroup", "RankPool", "SubjectError"]


class RankPool:
    """Rank groups on this machine.

    Args:
        device: `cpu` or `cuda`.
        backend: `gloo` or `nccl`; None for the device's usual one.
        timeout: Seconds that a small case may take; large ones, crowded machines, and a case with which its
            ranks get on (`verify.ranks.patience`) get more. May be changed between cases.
        warm_up: Seconds that each subject's first case gets beside: it may have to compile its kernels.
        on_lost: Called with each group that is lost.
        link: To a server that has been started; None to start one. The pool closes it.
        whole: Have large tensors given back whole, not folded, for measures that look at each element.

    Attributes:
        groups: The groups that it has, made when they are needed and made anew when they are lost.
        left: Returns the seconds from now after which no case goes on, whatever it may take; may be changed.
        timeout, warm_up: As given.
        hurry: Of that time, the share that a case gets; may be changed between cases.

    Raises:
        PlanError: If device and backend do not go together.
    """

    def __init__(
        self,
        *,
        device: str = "cpu",
        backend: str | None = None,
        timeout: float = 10.0,
        warm_up: float = 15.0,
        on_lost: Callable[[LostGroup], None] | None = None,
        link: ServerClient | None = None,
        whole: bool = False,
    ) -> None:
        plan(device=device, backend=backend, world_size=1, cuda_devices=1)
        self.timeout, self.warm_up, self.hurry = timeout, warm_up, 1.0
        self.left: Callable[[], float] = unlimited
        self.groups = GroupRegistry(
            device=device,
            backend=backend,
            link=link or ServerClient(),
            whole=whole,
            on_lost=on_lost,
            on_dropped=self._unsend,
        )
        self._called: set[Target] = set()
        self._owner = os.getpid()
        self._flights: deque[Flight] = deque()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, spec: str) -> None:
        """Have a rank load the subject `spec`, and return at once.

        Raises:
            SubjectError: If `spec` names nothing that exists.
            RankError: If the server of ranks cannot be reached.
        """
        self.groups.prepare(spec)

    @property
    def most_in_flight(self) -> int:
        """Cases that may be submitted and not yet observed: two beside a large one, which takes memory."""
        return 2 if any(elements(flight.case) > MOST_AHEAD for flight in self._flights) else PARTS

    @property
    def booting(self) -> bool:
        """Whether the server of ranks has not answered yet."""
        return self.groups.link is not None and not self.groups.link.answered

    def describe(self, spec: str) -> Description:
        """Return what a rank says of the subject `spec`.

        Raises:
            SubjectError: One line: what was wanted and what was found, if it cannot be loaded.
            RankError: If a rank cannot be started.
        """
        return self.groups.describe(spec)

    def submit(
        self,
        spec: str,
        case: Case,
        *,
        ahead: bool = False,
        inplace: bool = False,
        seconds: float | None = None,
    ) -> None:
        """Have the ranks run `case` on the subject `spec`, and return at once.

        Args:
            spec: Names the subject.
            case: The case.
            ahead: Keep the cases in flight, whose observations come first: the ranks go on to this one as
                soon as they can. Otherwise those are waited for, and their observations thrown away.
            inplace: The subject may write over its input.
            seconds: That a small case of this subject may take, in place of `timeout`.

        Raises:
            SubjectError: If `spec` names nothing that exists.
            RankError: If the server of ranks cannot be reached, or `most_in_flight` cases are in flight.
        """
        while self._flights and not ahead:
            with contextlib.suppress(RankError, SubjectError):
                self.observation()
        if len(self._flights) >= self.most_in_flight:
            raise RankError(
                f"Expected fewer than {self.most_in_flight} cases in flight, but got {len(self._flights)}."
            )
        target = msgspec.structs.replace(self.groups.target(spec), inplace=inplace)
        warm_up = 0.0 if target in self._called else self.warm_up
        self._called.add(target)
        flight = Flight(target, case, timeout=(seconds or self.timeout) * self.hurry, warm_up=warm_up)
        self._flights.append(flight)
        if len(self._flights) == 1:
            self._send_first()
        else:
            self._try_to_send(flight)

    def observation(self) -> Observation:
        """Return what the ranks gave back for the first case in flight, or how they ended.

        The wait is bounded. The second run of a probe is part of it, if the first returned on every rank.
        Where a rank, or the server, was killed (SIGKILL comes from outside: the kernel or a person), the case
        runs once more on new ranks, and that counts.

        Raises:
            SubjectError: If the subject could not be loaded.
            RankError: If our own machinery failed; the case is undecided.
        """
        if not self._flights:
            raise RankError("Expected a submitted case to observe, but there is none.")
        flight = self._flights[0]
        try:
            seen = self._observe_first()
            again = flight.killed
        except (RankError, SubjectError):
            if not flight.killed and self.groups.server_lives:
                raise
            again = True
        if again:
            self._flights.appendleft(flight.anew())
            seen = self._observe_first()
        for waiting in self._flights:
            self._try_to_send(waiting)
        return seen

    def _observe_first(self) -> Observation:
        """Return the observation of the first case in flight, which is sent now if it was not."""
        if self._flights[0].group is None:
            self._send_first()
        flight = self._flights[0]
        group, case = flight.group, flight.case
        assert group is not None
        try:
            seen = group.observation(left=self.left)
            self.groups.dynamo |= any(rank.compiled for rank in seen.ranks)  # groups to come have imported it
            following = second(case)
            if following is not None and not group.lost and all(r.ending == "returned" for r in seen.ranks):
                group.submit(following, seconds=seconds_for(following, flight.timeout))
                seen = msgspec.structs.replace(seen, again=group.observation(left=self.left))
        except (RankError, SubjectError):
            group.lost = group.lost or "RankError"
            raise
        finally:
            self._flights.popleft()
            flight.killed = group.killed
            self.groups.drop_if_lost(group, case)
        return seen

    def _try_to_send(self, flight: Flight) -> None:
        """Send a case if it can be; what prevents it shows when its turn comes."""
        if flight.group is None and (flight is self._flights[0] or self._may_go_ahead(flight)):
            with contextlib.suppress(RankError, SubjectError):
                self._send(flight)

    def _send_first(self) -> None:
        try:
            self._send(self._flights[0])
        except (RankError, SubjectError):
            self._flights.popleft()
            raise

    def _send(self, flight: Flight) -> None:
        case = flight.case
        group = self.groups.group_for(flight.target, case)
        if any(earlier.group is None for earlier in self._before(flight)):
            return  # what comes before has lost its group meanwhile, and is sent again first
        if flight.again:
            group.describe()  # a subject that kills its peers must find them loaded, not on their way
        group.submit(case, seconds=flight.seconds)
        flight.group = group

    def _unsend(self, group: RankGroup) -> None:
        """Have the cases that a dropped group would have run sent again when their turn comes."""
        for flight in self._flights:
            flight.group = None if flight.group is group else flight.group

    def _may_go_ahead(self, flight: Flight) -> bool:
        """Return whether a case can be sent while others are in flight, without any cost to those."""
        group = self.groups.open.get(flight.key)
        return (
            group is not None
            and serves(group, flight.case)
            and elements(flight.case) <= MOST_AHEAD
            and all(earlier.allows_pipelining for earlier in self._before(flight))
        )

    def _before(self, flight: Flight) -> list[Flight]:
        """Return the cases in flight that the same ranks run before `flight`."""
        earlier = itertools.takewhile(lambda other: other is not flight, self._flights)
        return [other for other in earlier if other.key == flight.key]

    def run(self, spec: str, case: Case) -> Observation:
        """Return the observation of `case` on the subject `spec`."""
        self.submit(spec, case)
        return self.observation()

    def bare(self, spec: str, cases: Sequence[Case]) -> tuple[Timed, ...]:
        """Return, for each rank, what the bare steps of `cases` took; all of one world size.

        No case may be in flight.

        Raises:
            SubjectError: If `spec` names nothing that exists.
            RankError: If a rank did not run them; the group is then made anew.
        """
        hardest = next(filter(checkpoints, cases), cases[0])
        group = self.groups.group_for(self.groups.target(spec), hardest)
        seconds = self.warm_up + sum(seconds_for(case, self.timeout) for case in cases)
        try:
            return group.bare(cases, seconds=seconds)
        finally:
            self.groups.drop_if_lost(group, None)

    def close(self) -> None:
        """End all ranks and the server, so that nothing is left behind; may be called again.

        In a fork of the process that opened the pool it does nothing.
        """
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.close)
        self._flights.clear()
        self.groups.close()

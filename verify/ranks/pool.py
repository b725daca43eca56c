"""The pool: runs cases on ranks, several in flight, in the order in which they are submitted.

Rules
-----
- A case is in flight from `submit` until its ticket has the outcome; meanwhile the parent computes what is
  expected. More are sent ahead, so that the ranks need not wait while the parent judges the first. They run
  in the order of submission, and the outcome of each stays in its ticket.
- What ends a group is told of the case that ended it, and of no other: a case sent ahead to it is sent again.
- SIGKILL comes from outside a process (the kernel's want of memory, a person). A case whose rank or server
  was killed so runs once more on new ranks, and that counts; one that kills its ranks itself does so again.
- A large case for which the kernel kills for want of memory both times is our failure, and no verdict: a
  larger machine would run it. A small one is the subject's doing.
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
from properties.values.period import is_large
from verify.errors import RankError, SubjectError
from verify.ranks.endings import LostGroup
from verify.ranks.group import RankGroup
from verify.ranks.group_registry import GroupRegistry, serves
from verify.ranks.limit import unlimited
from verify.ranks.messages import Description, Target, Timed
from verify.ranks.placement import plan
from verify.ranks.post_mortem import kills_for_memory
from verify.ranks.server_client import ServerClient
from verify.ranks.shared_tensors import PARTS
from verify.ranks.submission import MOST_AHEAD, Ticket, checkpoints, seconds_for

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
        client: To a server that has been started; None to start one. The pool closes it.
        whole: Have large tensors given back whole, not folded, for measures that look at each element.

    Attributes:
        groups: The groups that it has, made when they are needed and made anew when they are lost.
        left: Returns the seconds from now after which no case goes on, whatever it may take; may be changed.
        timeout, warm_up: As given.
        renew: Has the next cases of a subject run on new ranks, which have run nothing before.

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
        client: ServerClient | None = None,
        whole: bool = False,
    ) -> None:
        plan(device=device, backend=backend, world_size=1, cuda_devices=1)
        self.timeout, self.warm_up = timeout, warm_up
        self.left: Callable[[], float] = unlimited
        self.groups = GroupRegistry(
            device=device,
            backend=backend,
            client=client or ServerClient(),
            whole=whole,
            on_lost=on_lost,
            on_dropped=self._unsend,
        )
        self.renew = self.groups.renew
        self._called: set[Target] = set()
        self._owner = os.getpid()
        self._queue: deque[Ticket] = deque()
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
        return 2 if any(ticket.case.elements > MOST_AHEAD for ticket in self._queue) else PARTS

    @property
    def booting(self) -> bool:
        """Whether the server of ranks has not answered yet."""
        return self.groups.client is not None and not self.groups.client.answered

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
        inplace: bool = False,
        seconds: float | None = None,
        share: float = 1.0,
    ) -> Ticket:
        """Have the ranks run `case` on the subject `spec`, and return at once, with its ticket.

        The ranks go on to it as soon as they can, once they have run the cases that were submitted before. If
        `most_in_flight` are, the first of those is waited for.

        Args:
            spec: Names the subject.
            case: The case.
            inplace: The subject may write over its input.
            seconds: That a small case of this subject may take, in place of `timeout`.
            share: Of that time, what this case gets.

        Raises:
            SubjectError: If `spec` names nothing that exists.
            RankError: If the server of ranks cannot be reached.
        """
        while len(self._queue) >= self.most_in_flight:
            self._finish_first()
        target = msgspec.structs.replace(self.groups.target(spec), inplace=inplace)
        warm_up = 0.0 if target in self._called else self.warm_up
        self._called.add(target)
        timeout = (seconds or self.timeout) * share
        ticket = Ticket(target, case, timeout=timeout, warm_up=warm_up, advance=self._finish_first)
        self._queue.append(ticket)
        if len(self._queue) == 1:
            self._send_first()
        else:
            self._try_to_send(ticket)
        return ticket

    def _finish_first(self) -> None:
        """Wait, bounded, for what the ranks gave back for the first case in flight; its ticket has it then.

        The second run of a probe is part of it, if the first returned on every rank. Where a rank, or the
        server, was killed (SIGKILL comes from outside: the kernel or a person), the case runs once more on
        new ranks, and that counts.
        """
        if not self._queue:
            raise RankError("Expected a submitted case to observe, but there is none.")
        ticket = self._queue[0]
        try:
            outcome: Observation | Exception = self._observe_first()
            again = ticket.killed
        except (RankError, SubjectError) as error:
            outcome, again = error, ticket.killed or not self.groups.server_lives
        if again:
            ticket.renew()
            self._queue.appendleft(ticket)
            before = kills_for_memory()
            try:
                outcome = self._observe_first()
            except (RankError, SubjectError) as error:
                outcome = error
            if ticket.killed and is_large(ticket.case) and kills_for_memory() > before:
                outcome = _out_of_memory(ticket.case)
        ticket.outcome = outcome
        for waiting in self._queue:
            self._try_to_send(waiting)

    def _observe_first(self) -> Observation:
        """Return the observation of the first case in flight, which is sent now if it was not."""
        if self._queue[0].group is None:
            self._send_first()
        ticket = self._queue[0]
        group, case = ticket.group, ticket.case
        assert group is not None
        try:
            seen = group.observation(left=self.left)
            self.groups.dynamo |= any(rank.compiled for rank in seen.ranks)  # groups to come have imported it
            following = second(case)
            if following is not None and not group.lost and all(r.ending == "returned" for r in seen.ranks):
                group.submit(following, seconds=seconds_for(following, ticket.timeout))
                seen = msgspec.structs.replace(seen, again=group.observation(left=self.left))
        except (RankError, SubjectError):
            group.lost = group.lost or "RankError"
            raise
        finally:
            self._queue.popleft()
            ticket.killed = group.killed
            self.groups.drop_if_lost(group, case)
        return seen

    def _try_to_send(self, ticket: Ticket) -> None:
        """Send a case if it can be; what prevents it shows when its turn comes."""
        if ticket.group is None and (ticket is self._queue[0] or self._may_go_ahead(ticket)):
            with contextlib.suppress(RankError, SubjectError):
                self._send(ticket)

    def _send_first(self) -> None:
        try:
            self._send(self._queue[0])
        except (RankError, SubjectError):
            self._queue.popleft()
            raise

    def _send(self, ticket: Ticket) -> None:
        case = ticket.case
        group = self.groups.group_for(ticket.target, case)
        if any(earlier.group is None for earlier in self._before(ticket)):
            return  # what comes before has lost its group meanwhile, and is sent again first
        if ticket.again:
            group.describe()  # a subject that kills its peers must find them loaded, not on their way
        group.submit(case, seconds=ticket.seconds)
        ticket.group = group

    def _unsend(self, group: RankGroup) -> None:
        """Have the cases that a dropped group would have run sent again when their turn comes."""
        for ticket in self._queue:
            ticket.group = None if ticket.group is group else ticket.group

    def _may_go_ahead(self, ticket: Ticket) -> bool:
        """Return whether a case can be sent while others are in flight, without any cost to those."""
        group = self.groups.open.get(ticket.key)
        return (
            group is not None
            and serves(group, ticket.case)
            and ticket.case.elements <= MOST_AHEAD
            and all(earlier.allows_pipelining for earlier in self._before(ticket))
        )

    def _before(self, ticket: Ticket) -> list[Ticket]:
        """Return the cases in flight that the same ranks run before `ticket`."""
        earlier = itertools.takewhile(lambda other: other is not ticket, self._queue)
        return [other for other in earlier if other.key == ticket.key]

    def run(self, spec: str, case: Case) -> Observation:
        """Return the observation of `case` on the subject `spec`."""
        return self.submit(spec, case).result()

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
        self._queue.clear()
        self.groups.close()


def _out_of_memory(case: Case) -> RankError:
    return RankError(
        f"Expected memory for the {case.elements:,} elements of case {case.id}, but the system killed a "
        "rank for want of it; narrow the domain (sizes=small)."
    )

"""A rank group: the ranks of one world size that have loaded one subject, as the parent holds them.

Rules
-----
- Every wait has an end, whatever the ranks do.
- What a rank reports is kept as it is; what it cannot report (timeout, died, stopped) is told here.
- A group that is `lost` is not used again: stop it and make another.

Theory of operation
-------------------
Messages are sent ahead: set-up, load and the first case go out before the server has forked the ranks, which
find them in their sockets. The parent then collects one answer a message from each rank. When one rank has
raised or died, the others get a short grace, because they may be waiting for it in a collective for ever;
who has only waited then is `stopped`. Without that, who has not answered when the time is over is a
`timeout`, or `slow` if the ranks still get on with the case (`verify.ranks.patience`). The time grows by what
the ranks wait for a core (`verify.ranks.limit`), and on a slow machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from properties.case import Case
from properties.observation import Ending, Observation, RankObservation
from verify.errors import RankError, SubjectError
from verify.ranks import shared_tensors
from verify.ranks.endings import blames_a_lost_peer, unfit
from verify.ranks.limit import Limit, unlimited
from verify.ranks.messages import (
    Bare,
    Description,
    Failed,
    Load,
    Loaded,
    RankAnswer,
    Run,
    Skipped,
    Target,
    Timed,
)
from verify.ranks.patience import Late
from verify.ranks.placement import Plan
from verify.ranks.rank_processes import RankProcesses
from verify.ranks.server_client import ServerClient

_SETUP_SECONDS, _SETUP_SECONDS_A_RANK = 60.0, 2.0
_LOAD_SECONDS = 60.0
_STOP_SECONDS = 20.0


class _Sent(NamedTuple):
    """A case in flight: what it may take, and its number among the cases of its group, from 1 on."""

    case: Case
    seconds: float
    number: int


class RankGroup:
    """Persistent ranks with one subject; tests/conformance/test_transport.py holds what its methods promise.

    Attributes:
        plan, target: What it was made for.
        dynamo: Its ranks have imported `torch._dynamo`, which checkpointing needs.
        groupings: Process groups that its ranks have made for cases so far.
        lost: Why it cannot be used again, or an empty string.
    """

    def __init__(
        self,
        client: ServerClient,
        plan: Plan,
        target: Target,
        *,
        folder: Path,
        dynamo: bool = False,
        whole: bool = False,
    ) -> None:
        self.plan, self.target, self.dynamo = plan, target, dynamo
        self.groupings: set[tuple[tuple[int, ...], ...]] = set()
        self.lost = ""
        self._description: Description | None = None
        self._sent: deque[_Sent] = deque()
        self._number = 0
        self._limit = Limit(0.0)
        self._late: Late = ""
        self._processes = RankProcesses(client, plan, folder, dynamo=dynamo, whole=whole)
        self._ranks, self._collector = self._processes.ranks, self._processes.collector
        self._processes.send([Load(target=target)] * plan.world_size)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the ranks, once they are known; also when they are gone."""
        return self._processes.pids

    @property
    def killed(self) -> bool:
        """Whether a rank has ended by SIGKILL, which comes from outside its process."""
        return self._processes.killed

    def describe(self) -> Description:
        """Return what the ranks say of the subject.

        Raises:
            SubjectError: If a rank could not load it.
            RankError: If the ranks could not be started.
        """
        if self._description is None:
            try:
                self._description = self._await_start()
            except (RankError, SubjectError) as error:
                self.lost = "died" if self.killed else type(error).__name__
                raise
            self._limit = self._collector.limit(self._sent[0].seconds if self._sent else 0.0)
        return self._description

    @property
    def cases(self) -> int:
        """Number of cases submitted and not yet observed."""
        return len(self._sent)

    def submit(self, case: Case, *, seconds: float) -> None:
        """Send `case` to all ranks and return; they may take `seconds` from when they begin.

        While another case is in flight it is sent ahead: the ranks go on to it by themselves, if all is well.
        """
        if not self._sent:
            self._limit = self._collector.limit(seconds)
        if case.groups:
            self.groupings.add(case.groups)
        self._run(case, seconds, ahead=bool(self._sent))

    def _run(self, case: Case, seconds: float, *, ahead: bool) -> None:
        self._number += 1
        self._sent.append(_Sent(case, seconds, self._number))
        self._processes.send([Run(case=case, ahead=ahead)] * len(self._ranks))

    def _run_skipped(self, left: Callable[[], float]) -> None:
        """Send the cases in flight once more: they were passed over, and the group is still fit.

        When the first was passed over, so is the one that was sent after it.
        """
        skipped = tuple(self._sent)
        self._sent.clear()
        for rank in self._ranks:
            rank.forget(sent.number for sent in skipped)
        self._limit = self._collector.limit(skipped[0].seconds)
        for sent in skipped:
            self._run(sent.case, sent.seconds, ahead=bool(self._sent))
        self._late = self._collector.collect(self._limit, left, patient=True)

    def observation(self, *, left: Callable[[], float] = unlimited) -> Observation:
        """Return what the ranks gave back for the case submitted first, or how they ended.

        Args:
            left: Returns the seconds from now after which the wait ends, whatever the case may take.

        Raises:
            SubjectError: If the subject could not be loaded.
            RankError: If our own code failed in a rank.
        """
        assert self._sent
        self.describe()
        self._late = self._collector.collect(self._limit, left, patient=True)
        if any(rank.answers and isinstance(rank.answers[0], Skipped) for rank in self._ranks):
            self._run_skipped(left)
        for rank in self._ranks:
            if rank.answers and isinstance(answer := rank.answers[0], Failed):
                self.lost = "RankError"
                raise RankError(f"Expected rank {rank.number} to run a case, but it failed: {answer.message}")
        try:
            ranks = self._observed()
        except (OSError, ValueError) as error:
            self.lost = "RankError"
            raise RankError(f"Expected to read what the ranks gave back, but it failed: {error}") from error
        answers = [rank.answers.pop(0) for rank in self._ranks if rank.answers]
        self._sent.popleft()
        if self._sent:
            self._limit = self._collector.limit(self._sent[0].seconds)
        changed = {answer.changed for answer in answers if isinstance(answer, RankAnswer)} - {""}
        told = f"left its process changed: {', '.join(sorted(changed))}" if changed else ""
        self.lost = unfit(ranks) or told
        return Observation(ranks=ranks)

    def bare(self, cases: Sequence[Case], *, seconds: float) -> tuple[Timed, ...]:
        """Return, for each rank, what the bare steps of `cases` took; see `verify.ranks.worker.bare_steps`.

        Raises:
            SubjectError: If the subject could not be loaded.
            RankError: If a rank did not run them all within `seconds`.
        """
        self.describe()
        self.groupings.update(case.groups for case in cases if case.groups)
        self._processes.send([Bare(cases=tuple(cases))] * len(self._ranks))
        self._collector.collect(self._collector.limit(seconds))
        answers = [rank.answers.pop(0) if rank.answers else None for rank in self._ranks]
        for rank, answer in zip(self._ranks, answers, strict=True):
            if not isinstance(answer, Timed):
                self.lost = "RankError"
                why = (
                    answer.message
                    if isinstance(answer, Failed)
                    else self._processes.why_silent(rank, seconds)
                )
                raise RankError(f"Expected rank {rank.number} to time bare steps, but {why}")
        return tuple(answer for answer in answers if isinstance(answer, Timed))

    def ending(self, rank: int) -> Ending | None:
        """Return how the submitted case has ended on `rank` so far, or None; never waits."""
        self._collector.poll(0.0)
        answer = next(iter(self._ranks[rank].answers), None)
        if isinstance(answer, RankAnswer):
            return answer.observed.ending
        return "died" if self._ranks[rank].gone else None

    def close(self) -> None:
        """Kill the ranks if they, and the server, are alive, and free what the parent holds of them."""
        self._processes.close()

    def _await_start(self) -> Description:
        self._processes.await_pids()
        seconds = _SETUP_SECONDS + _SETUP_SECONDS_A_RANK * self.plan.world_size
        self._collector.collect(self._collector.limit(seconds))
        for rank in self._processes.gone_first():
            answer = rank.answers.pop(0) if rank.answers else None
            if answer is None or isinstance(answer, Failed):
                why = answer.message if answer else self._processes.why_silent(rank, seconds)
                raise RankError(
                    f"Expected rank {rank.number} to join its {self.plan.backend} group, but {why}"
                )
        self._collector.collect(self._collector.limit(_LOAD_SECONDS), patient=True)
        descriptions = []
        loaded = any(rank.answers and isinstance(rank.answers[0], Loaded) for rank in self._ranks)
        for rank in self._processes.gone_first():
            answer = rank.answers.pop(0) if rank.answers else None
            if answer is None and rank.gone and loaded and self._sent:
                continue  # it died of the first case, in which another rank is already
            if not isinstance(answer, Loaded):
                why = (
                    answer.message
                    if isinstance(answer, Failed)
                    else self._processes.why_silent(rank, _LOAD_SECONDS)
                )
                raise SubjectError(f"Expected to load the subject {self.target.spec!r}, but {why}")
            if answer.description is None:
                raise SubjectError(answer.error)
            descriptions.append(answer.description)
        return descriptions[0]

    def _observed(self) -> tuple[RankObservation, ...]:
        dead = [rank.number for rank in self._ranks if rank.gone and not rank.answers]
        silent = [rank for rank in self._ranks if rank.silent]
        codes: dict[int, int] = {}
        if dead or silent:
            # Not of one that was seen: the dump may end the process that it is of, so it is the last resort.
            codes = self._processes.stop(
                dead=dead, trace=[rank.number for rank in silent if rank.seen is None]
            )
        observed = []
        for rank in self._ranks:
            if rank.answers and isinstance(answer := rank.answers[0], RankAnswer):
                seen = rank.returned(
                    answer, self._sent[0].case, base=shared_tensors.part(self._sent[0].number)
                )
                if dead and blames_a_lost_peer(seen):
                    seen = msgspec.structs.replace(seen, ending="stopped")
            elif rank.gone:
                seen = rank.died(codes.get(rank.number))
            else:
                seen = rank.killed(self._late or "stopped")
            observed.append(seen)
        return tuple(observed)

"""Rank processes: those of one rank group, from their spawn to their end, and what is sent to all of them.

The server forks them; until it says so, what is sent waits in their sockets.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec

from verify.errors import RankError
from verify.ranks.collecting import Collector
from verify.ranks.endings import exit_text
from verify.ranks.messages import Setup, Spawn, Spawned, Stop, Stopped, frame
from verify.ranks.placement import Plan
from verify.ranks.rank_handle import RankHandle
from verify.ranks.server_client import ServerClient

_STOP_SECONDS = 20.0


class RankProcesses:
    """The processes of one group.

    Attributes:
        ranks: Their handles.
        collector: Waits for their answers.
        pids: Their process ids, once they are known; also when they are gone.
        killed: One has ended by SIGKILL, which comes from outside its process.
    """

    def __init__(
        self, client: ServerClient, plan: Plan, folder: Path, *, dynamo: bool = False, whole: bool = False
    ) -> None:
        folder.mkdir(parents=True)  # somebody may have cleaned the folder of temporary files
        self.ranks = [RankHandle(number, folder) for number in range(plan.world_size)]
        self.collector = Collector(self.ranks)
        self.pids: tuple[int, ...] = ()
        self.killed = False
        self._alive = False
        self._client, self._plan, self._folder = client, plan, folder
        self._ticket = self._spawn(dynamo=dynamo)
        self.send(
            [
                Setup(
                    rank=rank.number,
                    world_size=plan.world_size,
                    device=plan.devices[rank.number],
                    backend=plan.backend,
                    folder=str(folder),
                    whole=whole,
                )
                for rank in self.ranks
            ]
        )

    def _spawn(self, *, dynamo: bool) -> int:
        descriptors: list[int] = []
        for rank in self.ranks:
            connection, watched = rank.theirs
            descriptors += (connection.fileno(), rank.memory, watched.fileno())
        request = Spawn(world_size=self._plan.world_size, folder=str(self._folder), dynamo=dynamo)
        ticket = self._client.send(request, tuple(descriptors))
        for rank in self.ranks:
            for one in rank.theirs:
                one.close()
        return ticket

    def send(self, messages: Sequence[msgspec.Struct]) -> None:
        """Send each rank its message."""
        data = b""
        for rank, message, previous in zip(self.ranks, messages, [None, *messages], strict=False):
            data = data if message is previous else frame(message)
            # A rank that has died shows when its answer is awaited.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                rank.connection.sendall(data)

    def await_pids(self) -> None:
        """Wait until the server has forked them.

        Raises:
            RankError: If it has not.
        """
        if self.pids:
            return
        spawned = self._client.reply(self._ticket)
        assert isinstance(spawned, Spawned)
        if spawned.error:
            raise RankError(f"Expected {self._plan.world_size} ranks, but the server {spawned.error}.")
        self.pids, self._alive = spawned.pids, True
        self.collector.follow(spawned.pids, slowness=spawned.slowness)

    def gone_first(self) -> list[RankHandle]:
        """Return the ranks, those first for which the others may wait in vain."""
        return sorted(self.ranks, key=lambda rank: not rank.gone)

    def why_silent(self, rank: RankHandle, seconds: float) -> str:
        """Return why a rank has not answered within `seconds`."""
        if not rank.gone:
            return f"it took more than {seconds:g} s."
        code = self.stop(dead=[rank.number]).get(rank.number)
        lines = rank.remains.printed().splitlines()
        return f"the process ended: {exit_text(code)}{'; ' + lines[-1] if lines else '.'}"

    def stop(self, *, dead: Sequence[int] = (), trace: Sequence[int] = ()) -> dict[int, int]:
        """Kill the ranks; write down the stacks of those in `trace` before.

        Returns:
            By rank in `dead`, which have ended by themselves: its exit code, negative for a signal.
        """
        pids = self.pids
        if not self._alive:
            return {}
        self._alive = False
        request = Stop(pids=pids, dead=tuple(pids[k] for k in dead), trace=tuple(pids[k] for k in trace))
        stopped = self._client.request(request, seconds=_STOP_SECONDS)
        assert isinstance(stopped, Stopped)
        self.killed |= -signal.SIGKILL in stopped.codes.values()
        return {rank: stopped.codes[pid] for rank, pid in enumerate(pids) if pid in stopped.codes}

    def close(self) -> None:
        """Kill the ranks if they, and the server, are alive, and free what the parent holds of them."""
        if self._client.alive:
            with contextlib.suppress(RankError):
                self.await_pids()
                self.stop()
        self.collector.close()
        for rank in self.ranks:
            rank.close()
        self.ranks = []
        shutil.rmtree(self._folder, ignore_errors=True)

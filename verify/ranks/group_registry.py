"""The registry of groups: which ranks there are, by subject and world size, and the server they come from.

Rules
-----
- At most `MAX_GROUPS` groups and `MAX_RANKS` ranks are kept, those that were used last.
- A group that is lost is closed at once, and told of with the case that ended it.

Theory of operation
-------------------
A group is made anew for four reasons: it is lost (`RankGroup.lost`); it must have imported `torch._dynamo`
for a checkpointed step and has not; it holds `MAX_GROUPINGS` sets of process groups, which live as long as
it does; there is no room beside the groups that were used last. The server lives as long as the registry;
where it has died, all groups are lost and the next one comes from another.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from properties.case import Case
from verify.errors import RankError, SubjectError
from verify.ranks.endings import LostGroup
from verify.ranks.group import RankGroup
from verify.ranks.messages import CountDevices, Description, Devices, Target
from verify.ranks.placement import Plan, plan
from verify.ranks.server_client import ServerClient
from verify.ranks.spec import resolve
from verify.ranks.submission import checkpoints

MAX_GROUPS, MAX_RANKS, MAX_GROUPINGS = 6, 64, 8


class GroupRegistry:
    """The groups of a pool.

    Args:
        device, backend: As in `RankPool`.
        client: To the server; the registry closes it.
        whole: Have large tensors given back whole, not folded.
        on_lost: Called with each group that is lost.
        on_dropped: Called with each group before it is closed, lost or not.

    Attributes:
        open: The groups, that used last at the end.
        client: To the server; None once closed.
        on_lost: As given; may be changed.
        dynamo: Groups to come have imported `torch._dynamo`; may be set.
    """

    def __init__(
        self,
        *,
        device: str,
        backend: str | None,
        client: ServerClient,
        whole: bool,
        on_lost: Callable[[LostGroup], None] | None,
        on_dropped: Callable[[RankGroup], None],
    ) -> None:
        self.open: dict[tuple[Target, int], RankGroup] = {}
        self.client: ServerClient | None = client
        self.on_lost, self.dynamo = on_lost, False
        self._on_dropped, self._whole = on_dropped, whole
        self._device, self._backend = device, backend
        self._cuda_devices = None if device == "cuda" else 0
        self._targets: dict[str, Target] = {}
        self._descriptions: dict[Target, Description] = {}
        self._made = 0

    @property
    def server_lives(self) -> bool:
        """Whether the server of ranks can be asked."""
        return self.client is not None and self.client.alive

    def target(self, spec: str) -> Target:
        """Return where `spec` is, seen from the folder in which it was first asked for.

        Raises:
            SubjectError: If it names nothing that exists.
        """
        if spec not in self._targets:
            self._targets[spec] = resolve(spec, folder=Path.cwd())
        return self._targets[spec]

    def prepare(self, spec: str) -> None:
        """Have a rank load the subject `spec`, unless one has described it, and return at once."""
        target = self.target(spec)
        if target not in self._descriptions:
            self.group(target, 1)

    def describe(self, spec: str) -> Description:
        """Return what a rank says of the subject `spec`; once more if the first one was killed.

        Raises:
            SubjectError: One line: what was wanted and what was found, if it cannot be loaded.
            RankError: If a rank cannot be started.
        """
        target = self.target(spec)
        if target not in self._descriptions:
            group = self.group(target, 1)
            try:
                self._descriptions[target] = self._described(group)
            except (RankError, SubjectError):
                if not group.killed and self.server_lives:
                    raise
                self._descriptions[target] = self._described(self.group(target, 1))
        return self._descriptions[target]

    def _described(self, group: RankGroup) -> Description:
        try:
            return group.describe()
        finally:
            self.drop_if_lost(group, None)

    def group(self, target: Target, world_size: int) -> RankGroup:
        """Return the group of this subject and size, made if there is none.

        Raises:
            RankError: If the server of ranks cannot be reached.
        """
        client = self._alive_client()
        key = (target, world_size)
        group = self.open.pop(key, None)
        if group is None:
            self._make_room(world_size)
            self._made += 1
            group = RankGroup(
                client,
                self._plan(client, world_size),
                target,
                folder=client.folder / f"group-{self._made}",
                dynamo=self.dynamo,
                whole=self._whole,
            )
        self.open[key] = group
        return group

    def group_for(self, target: Target, case: Case) -> RankGroup:
        """Return the group that runs `case`, made anew if the one there is cannot."""
        self.dynamo |= checkpoints(case)
        group = self.group(target, case.world_size)
        if not serves(group, case):
            self.drop(group)
            group = self.group(target, case.world_size)
        return group

    def renew(self, spec: str) -> None:
        """Close the groups of the subject `spec`, so that its next cases run on new ranks."""
        for group in [group for group in self.open.values() if group.target.spec == spec]:
            self.drop(group)

    def drop(self, group: RankGroup) -> None:
        """Close a group, and forget it."""
        self.open.pop((group.target, group.plan.world_size), None)
        self._on_dropped(group)
        group.close()

    def drop_if_lost(self, group: RankGroup, case: Case | None) -> None:
        """Close a group that is lost, and tell so, with the case that ended it."""
        if not group.lost:
            return
        self.drop(group)
        if self.on_lost is not None:
            self.on_lost(
                LostGroup(
                    spec=group.target.spec,
                    world_size=group.plan.world_size,
                    reason=group.lost,
                    case=case.id if case else "",
                    pids=group.pids,
                )
            )

    def close(self) -> None:
        """End all ranks and the server."""
        if self.client is not None:
            # The server kills its ranks when it leaves.
            self.client.close()
            self.client = None
        for group in self.open.values():
            group.close()
        self.open.clear()

    def _alive_client(self) -> ServerClient:
        if self.client is None:
            raise RankError("Expected an open pool of ranks, but it is closed.")
        if not self.client.alive:
            for group in tuple(self.open.values()):
                group.lost = "the server is gone"
                self.drop_if_lost(group, None)
            self.client.close()
            self.client = ServerClient()
        return self.client

    def _plan(self, client: ServerClient, world_size: int) -> Plan:
        if self._cuda_devices is None:
            devices = client.request(CountDevices())
            assert isinstance(devices, Devices)
            self._cuda_devices = devices.cuda
        usable = self._cuda_devices
        return plan(device=self._device, backend=self._backend, world_size=world_size, cuda_devices=usable)

    def _make_room(self, world_size: int) -> None:
        while self.open and (
            len(self.open) >= MAX_GROUPS
            or world_size + sum(group.plan.world_size for group in self.open.values()) > MAX_RANKS
        ):
            self.drop(next(iter(self.open.values())))


def serves(group: RankGroup, case: Case) -> bool:
    """Return whether a group can run `case`: else it is made anew."""
    full = case.groups not in group.groupings and len(group.groupings) >= MAX_GROUPINGS
    return not full and (group.dynamo or not checkpoints(case))

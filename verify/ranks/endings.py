"""Endings: what is told of a rank that cannot tell itself, and whether a group may go on. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import msgspec

from properties.observation import RankObservation

_PEER_IS_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "gloo/transport",
    "distbackenderror",
)


class LostGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group that ended before its time.

    Attributes:
        spec: The subject that it ran.
        world_size: Its number of ranks.
        reason: `timeout`, `died`, `collectives do not match`, ...
        case: Id of the case after which it was lost; empty if there was none.
        pids: Process ids of its ranks, which are gone.
    """

    spec: str
    world_size: int
    reason: str
    case: str = ""
    pids: tuple[int, ...] = ()


def exit_text(code: int | None) -> str:
    """Return `exit code 3` or `signal SIGABRT` for a code, negative for a signal, of a process that ended.

    None is a process that closed its connection to us, and did not end.
    """
    if code is None:
        return "connection closed"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def trim(stack: str, *, ours: str) -> str:
    """Return `stack` without what tells nothing of the subject: frames of files in the folder `ours`."""
    noise = (f'  File "{ours}', '  File "<string>"', "Extension modules:")
    return "\n".join(line for line in stack.splitlines() if not line.startswith(noise)).strip()


def blames_a_lost_peer(seen: RankObservation) -> bool:
    """Return whether a rank raised because the connection to another, dead, rank broke."""
    if seen.raised is None:
        return False
    text = f"{seen.raised.type} {seen.raised.message} {seen.raised.traceback}".lower()
    return any(words in text for words in _PEER_IS_LOST)


def unfit(ranks: Sequence[RankObservation]) -> str:
    """Return why a group cannot run another case after this one, or nothing.

    It can if every rank has answered and, in each process group, all its ranks issued the same sequence of
    operations: then none is left waiting, and none of the next case's would meet one of this case's.
    """
    endings = {seen.ending for seen in ranks}
    for ending in ("died", "timeout", "slow", "stopped"):
        if ending in endings:
            return ending
    if any(blames_a_lost_peer(seen) for seen in ranks):
        return "raised in a collective"
    sequences: dict[tuple[int, ...], dict[int, list[str]]] = {}
    raised = any(seen.raised for seen in ranks)
    for seen in ranks:
        for entry in seen.ledger:
            if entry.is_point_to_point:
                if raised:
                    return "point-to-point operations"
                continue
            sequences.setdefault(entry.group, {}).setdefault(seen.rank, []).append(entry.op)
    for group, by_rank in sequences.items():
        members = group or tuple(seen.rank for seen in ranks)
        if any(by_rank.get(rank, []) != by_rank.get(members[0], []) for rank in members):
            return "collectives do not match"
    return ""

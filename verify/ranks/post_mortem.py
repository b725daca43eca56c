"""Remains: what a rank that cannot tell has left in its group's folder.

`rank-R.stack` are the Python stacks of its threads, if it crashed or was killed without having been seen;
`rank-R.log` is what it printed, `rank-R.ledger` the collectives that it issued, the one in which it hangs
included.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from properties.observation import Collective
from verify.ranks.endings import trim
from verify.ranks.server_client import tail

_OURS = str(Path(__file__).parent)
_STACK_BYTES = 20_000
_LEDGER_BYTES = 1 << 22


def kills_for_memory() -> int:
    """Return how many processes Linux has killed for want of memory since its start; 0 elsewhere."""
    try:
        lines = Path("/proc/vmstat").read_text("ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


@dataclass(frozen=True, slots=True)
class PostMortem:
    """The files of one rank."""

    folder: Path
    rank: int

    def stack(self) -> str:
        """Return its stacks, without our own frames, as faulthandler has written them."""
        return self.trimmed(tail(self._path("stack"), limit=_STACK_BYTES))

    def trimmed(self, stack: str) -> str:
        """Return a stack without our own frames."""
        return trim(stack, ours=_OURS)

    def printed(self) -> str:
        """Return the end of what it printed."""
        return tail(self._path("log"))

    def ledger(self) -> tuple[Collective, ...]:
        """Return the collectives of its last case, as far as they were written whole."""
        entries = []
        for line in tail(self._path("ledger"), limit=_LEDGER_BYTES).splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                entries.append(msgspec.json.decode(line, type=Collective))
        return tuple(entries)

    def _path(self, kind: str) -> Path:
        return self.folder / f"rank-{self.rank}.{kind}"

"""Remains: what a rank that cannot tell has left in its group's folder.

`rank-R.stack` are the Python stacks of its threads, `rank-R.log` is what it printed, `rank-R.ledger` the
collectives that it issued, the one in which it hangs included.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from properties.observation import Collective
from verify.ranks.endings import trim
from verify.ranks.link import tail

_OURS = str(Path(__file__).parent)
_STACK_BYTES = 20_000
_LEDGER_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Remains:
    """The files of one rank."""

    folder: Path
    rank: int

    def stack_size(self) -> int:
        """Return how many bytes of stacks were written so far."""
        with contextlib.suppress(OSError):
            return self._path("stack").stat().st_size
        return 0

    def stack(self, *, start: int = 0) -> str:
        """Return its stacks, without our own frames, of what was written from `start` on."""
        return trim(tail(self._path("stack"), limit=_STACK_BYTES, start=start), ours=_OURS)

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

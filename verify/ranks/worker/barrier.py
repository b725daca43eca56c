"""The barrier: between a case and one that was sent ahead, the ranks of a group wait for each other.

Rules
-----
- A rank that goes on while another still runs the case, or has failed it, would answer the other's
  collectives with those of the next case. So it begins that only when all have ended the last one well.
- Otherwise the parent decides: the rank passes the case over, and the parent sends it again.

Theory of operation
-------------------
Each rank writes in a file that all share how its case ended, and looks what the others wrote. A collective of
torch would do as well until a rank hangs or dies: then all would hang in ours, and the subject's ending could
not be told from it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

_NUMBER = struct.Struct("q")
_PAUSE_SECONDS = 5e-5


class Barrier:
    """One rank's view of the barrier of its group.

    Args:
        path: A file that all ranks of the group share; made if it is not there.
        rank, world_size: Of the group.
    """

    def __init__(self, path: Path, *, rank: int, world_size: int) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(file, world_size * _NUMBER.size)
            self._told = mmap.mmap(file, world_size * _NUMBER.size)
        finally:
            os.close(file)
        self._rank, self._world_size = rank, world_size

    def tell(self, number: int, *, well: bool) -> None:
        """Tell the others how this rank's case of that number, from 1 on, ended."""
        _NUMBER.pack_into(self._told, self._rank * _NUMBER.size, number if well else -number)

    def passes(self, number: int) -> bool:
        """Return whether all ranks have ended the case of that number well; waits until all have ended it.

        Who is further on has passed this barrier before.
        """
        while True:
            told = [
                _NUMBER.unpack_from(self._told, rank * _NUMBER.size)[0] for rank in range(self._world_size)
            ]
            if -number in told:
                return False
            if all(abs(other) >= number for other in told):
                return True
            time.sleep(_PAUSE_SECONDS)

"""A journal: a file of whole lines that one process appends to, and that survives whatever ends that process.

Rules
-----
- One process at a time: the file is locked (`flock`) from opening to closing; the lock ends with the process,
  however that ends, and no process that it starts inherits it.
- A line is whole or not there. What a failed write left is cut off at once; what a killed process left is cut
  off by the next one that opens the file.
- A line is handed to the system when it is appended, and is on the disk after `sync`.
- A regular file only, and no link: a journal from a stranger leads nowhere else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from verify.errors import UsageError

MAX_LINE = 1 << 29
"""Bytes of one line; a longer one is not a journal's."""
_CHUNK = 1 << 20
_IN_USE = (errno.EWOULDBLOCK, errno.EACCES)


class RecordError(UsageError):
    """A record that cannot be used; the message names the file and what is wrong with it."""


class Journal:
    """An open, locked journal.

    Args:
        path: Created if it does not exist, in a folder that does.

    Attributes:
        torn: Bytes of a last line without its end that were cut off on opening.

    Raises:
        OSError: If it cannot be opened for writing.
        RecordError: If another process has it open, or it is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        try:
            _lock(self._file, path)
            self._end = os.fstat(self._file).st_size
            self.torn = self._recover()
        except BaseException:
            os.close(self._file)
            raise

    @property
    def empty(self) -> bool:
        """Whether it holds no line."""
        return self._end == 0

    def append(self, line: bytes) -> None:
        """Append `line`, which has no end of line, whole or not at all.

        Raises:
            OSError: If it cannot be written; nothing of it is left then.
        """
        rest = memoryview(line + b"\n")
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except BaseException:  # an interrupt, too, leaves no half line
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(line) + 1

    def sync(self) -> None:
        """Wait until everything appended is on the disk.

        Raises:
            OSError: If it cannot be written there.
        """
        if self._file >= 0:
            os.fsync(self._file)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield each line with its offset.

        Raises:
            RecordError: If a line is too long.
        """
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            offset = 0
            while line := file.readline(MAX_LINE):
                if not line.endswith(b"\n"):
                    raise RecordError(f"Expected lines of at most {MAX_LINE} bytes, but got {self.path}.")
                yield offset, line[:-1]
                offset += len(line)

    def line(self, offset: int, length: int) -> bytes:
        """Return the line of `length` bytes at `offset`."""
        return os.pread(self._file, length, offset)

    def close(self) -> None:
        """Close and unlock it; twice is once."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _recover(self) -> int:
        """Complete the last line if only its end is missing, else cut it off; return the bytes cut off."""
        begin = self._last_line()
        torn = self._end - begin
        if not torn:
            return 0
        if torn < MAX_LINE and _is_whole(self.line(begin, torn)):
            self._end += os.write(self._file, b"\n")
            return 0
        os.ftruncate(self._file, begin)
        self._end = begin
        return torn

    def _last_line(self) -> int:
        """Return where the bytes after the last end of line begin."""
        end = self._end
        while end:
            begin = max(0, end - _CHUNK)
            found = self.line(begin, end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return 0


def _open(path: Path) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RecordError(f"Expected a regular file, but got {path}: it is a link.") from None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise RecordError(f"Expected a regular file, but got {path}.")
    return file


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _IN_USE:
            raise RecordError(
                f"Expected a record that no other run is writing, but got {path.parent}; "
                "wait for that run, or give another folder."
            ) from None
        # A file system without locks: the user's own care must do.


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (ValueError, RecursionError):
        return False

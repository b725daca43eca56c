"""Errors: who is to blame, by the type; and the program's exit codes, as `--help` documents them.

`CaseError` (the caller asked for something impossible; see `properties.case`), `UsageError` (a command line
that cannot be run), `SubjectError` (the subject could not be loaded), `RankError` (our own machinery failed:
its case is undecided).
"""

from __future__ import annotations

OK = 0
NOT_MET = 1
UNDECIDED = 2
USAGE = 64
INTERNAL = 70
INTERRUPTED = 130


class UsageError(ValueError):
    """A command line that cannot be run."""


class SubjectError(Exception):
    """The subject could not be loaded; the message is one line: what was wanted, what was found."""


class RankError(Exception):
    """The ranks, their server or the way between failed, not the subject; the case is undecided."""

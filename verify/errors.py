"""Errors: three families, so that the type says who is to blame.

`CaseError` (the caller asked for something impossible; see `properties.case`), `SubjectError` (the subject
could not be loaded), `RankError` (our own machinery failed: its case is undecided).
"""

from __future__ import annotations

from properties.case import CaseError

__all__ = ["CaseError", "RankError", "SubjectError"]


class SubjectError(Exception):
    """The subject could not be loaded; the message is one line: what was wanted, what was found."""


class RankError(Exception):
    """The ranks, their server or the way between failed, not the subject; the case is undecided."""

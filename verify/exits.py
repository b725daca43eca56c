"""Exit codes of the program, as `--help` documents them."""

from __future__ import annotations

OK = 0
NOT_MET = 1
UNDECIDED = 2
USAGE = 64
INTERNAL = 70
INTERRUPTED = 130

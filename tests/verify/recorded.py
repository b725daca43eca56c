"""A command line as a record keeps it."""

from __future__ import annotations

from verify.config import Config

ARGUMENTS = Config(subject=("fake:Subject",), cases=40, seed=3)

"""A command line as a record keeps it."""

from __future__ import annotations

from verify.record.previous_run import Arguments

ARGUMENTS = Arguments(
    subject=("fake:Subject",),
    device="cpu",
    backend=None,
    world_sizes=None,
    cases=40,
    seconds=None,
    seed=3,
    grade=None,
    contract=(),
    properties=None,
    domain=(),
    fail_fast=False,
)

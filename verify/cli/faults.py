"""The command `faults`: the catalogue and the right subjects, judged by a crew, told and written."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

import msgspec

from properties.domain import DomainError, Promise, override
from verify.config import Budget, pairs
from verify.environment import cores, environment, one_line
from verify.errors import UsageError
from verify.faults.cards import cards, right_cards
from verify.measure.power.outcome import Done
from verify.measure.power.process_pool import ProcessPool
from verify.measure.power.progress import Told
from verify.measure.power.score import Score
from verify.measure.power.score_json import document
from verify.measure.power.score_page import page
from verify.measure.power.score_text import FOOTNOTE, conclusion, right_lines, totals
from verify.measure.power.work_units import (
    QUICK_TRIES,
    Effort,
    RightUnit,
    SelectionError,
    Unit,
    chosen,
    fault_units,
    right_units,
)
from verify.report.stamp import of_faults, stamped

SEEDS = 5
RIGHT_CASES = 2000
QUICK_RIGHT_CASES = 400


class Works(Protocol):
    """The part of a crew that is needed here (`verify.measure.power.process_pool.ProcessPool`)."""

    def work(self, units: Iterable[Unit]) -> Iterator[Done]:
        """Yield each unit with its outcome."""


def faults_command(arguments: Namespace) -> int:
    """Do `python -m verify faults` and return its exit code."""
    for option in ("json", "table"):
        _check_writable(option, getattr(arguments, option))
    if arguments.sensitivity:
        from verify.measure.sensitivity.sweep import sensitivity_command

        return sensitivity_command(arguments)
    if arguments.diagnosis:
        from verify.measure.diagnosis.naming import diagnosis_command

        return diagnosis_command(arguments)
    score = Score(tuple(units(arguments)), whole=not arguments.names and not arguments.quick)
    workers = max(1, min(arguments.workers or cores(), len(score.units)))
    counts = [f"{score.faults} faults, {score.seeds} seeds"] if score.faults else []
    if right := sum(unit.cases for unit in score.units if isinstance(unit, RightUnit)):
        counts.append(f"{right} cases of right subjects")
    words = "; ".join([one_line(device="cpu", backend="gloo"), *counts, f"{workers} workers"])
    sys.stdout.write(words + "\n")
    with _written(score, arguments), ProcessPool(workers) as crew:
        judge(score, crew, sys.stdout)
    return score.exit_code


def units(arguments: Namespace) -> Iterator[Unit]:
    """Yield what a command line asks for.

    Raises:
        UsageError: If it names no fault and no right subject, or no domain.
    """
    quick, names = arguments.quick, arguments.names
    domain = pairs(arguments.domain, "--domain")
    try:
        selected, passing = chosen(cards(), right_cards(), names)
        override(Promise(), domain=domain, contract={}, grade=None)
    except (SelectionError, DomainError) as error:
        raise UsageError(str(error)) from None
    budget = Budget.of(arguments.cases, arguments.seconds)
    effort = Effort(cases=budget.cases, seconds=budget.seconds, net=budget.net)
    if quick:
        effort = msgspec.structs.replace(effort, tries=QUICK_TRIES, tries_total=QUICK_TRIES)
    right = arguments.right
    if right is None:
        right = 0 if not passing else QUICK_RIGHT_CASES if quick else RIGHT_CASES
    if domain and not right:
        raise UsageError(
            "Expected right subjects with --domain, but got none; name `right`, or give --right N."
        )
    yield from fault_units(selected, seeds=arguments.seeds or (1 if quick else SEEDS), effort=effort)
    if right:
        yield from right_units(passing or right_cards(), cases=right, domain=domain)


def judge(score: Score, crew: Works, stream: TextIO) -> None:
    """Have `crew` do the units of `score`, and tell everything on `stream`.

    An interrupt is told with a summary of what was judged, and raised again.
    """
    try:
        with Told(score, stream) as told:
            for done in crew.work(score.units):
                score.add(done)
                told.tell(done)
    finally:
        faults = [FOOTNOTE, "", *totals(score)] if score.faults else []
        stream.write("\n".join([*faults, *right_lines(score.right), conclusion(score)]) + "\n")
        stream.flush()


@contextmanager
def _written(score: Score, arguments: Namespace) -> Iterator[None]:
    """Write the files that the command line names at the end, also after an interrupt."""
    command = ["verify", *arguments.words]
    try:
        yield
    finally:
        if arguments.json:
            facts = environment(device="cpu", backend="gloo")
            Path(arguments.json).write_text(document(score, environment=facts, command=command), "utf-8")
        if arguments.table:
            line = " ".join(["python -m verify", *_without("--json", arguments.words)])
            where = one_line(device="cpu", backend="gloo").partition(": ")[2]
            text = stamped(
                page(score, command=line, environment=where), of_faults(row.card for row in score.rows)
            )
            Path(arguments.table).write_text(text, "utf-8")


def _without(option: str, words: list[str]) -> list[str]:
    """Return a command line without an option and its value."""
    left = [word for word in words if not word.startswith(f"{option}=")]
    if option in left:
        at = left.index(option)
        del left[at : at + 2]
    return left


def _check_writable(option: str, path: str | None) -> None:
    if path and not Path(path).absolute().parent.is_dir():
        raise UsageError(f"Expected --{option} to be writable, but got {path!r}: there is no such folder.")

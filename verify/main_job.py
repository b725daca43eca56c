"""The main job: the three systems that always work, each judged, in one table.

`local`, plain batch norm on each rank, is the control: a run that does not report it is worth nothing, and
fails. `aggregated` must hold. `torch` must hold apart from its known discrepancies, which are listed by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TextIO

from verify import exits
from verify.campaign import Budget
from verify.report.summary import grades, verdict_words
from verify.result import SubjectResult
from verify.run import Run, Settings, exit_code
from verify.subject import Overrides
from verify.subjects.catalogue import BUILTINS
from verify.wording import count, listing, ratio

CONTROL_BUDGET = Budget(cases=60, seconds=20.0)
RARELY = (5, 8)
"""Numbers of ranks that the main job draws rarely, beside the usual ones."""


def main_job(run: Run, stream: TextIO) -> int:
    """Judge the three systems, write the table to `stream`, and return the exit code."""
    results = []
    for name, builtin in BUILTINS.items():
        subject = run.subject(
            name, expectation=builtin.expectation, overrides=_widened(run.settings.overrides)
        )
        results.append(
            run.campaign(subject, settings=_settings(run.settings, control=builtin.expectation == "VIOLATED"))
        )
    stream.write("\n" + "\n".join(table(results)) + "\n\n")
    code = exit_code(results)
    stream.write(_conclusion(results, code) + "\n")
    return code


def table(results: list[SubjectResult]) -> Iterator[str]:
    """Yield the lines of the table."""
    rows = [("system", "verdict", "grade satisfied", "cases", "greatest ratio"), *(_row(r) for r in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    for result in results:
        if seen := [known.id for known in result.known if known.state == "seen"]:
            yield f"{result.label}: known discrepancies seen: {listing(seen)}"
        if stale := [known.id for known in result.known if known.state == "stale"]:
            yield f"{result.label}: known discrepancies gone stale, to be removed: {listing(stale)}"
        if idle := [known.id for known in result.known if known.state == "not exercised"]:
            yield f"{result.label}: known discrepancies not exercised: {listing(idle)}"


def _row(result: SubjectResult) -> tuple[str, ...]:
    control = result.expectation == "VIOLATED"
    label = f"{result.label} (control)" if control else result.label
    words = "VIOLATED, as it must be" if control and result.met else verdict_words(result)
    return label, words, grades(result) or "-", str(result.accounting.cases), ratio(result.max_ratio)


def _conclusion(results: list[SubjectResult], code: int) -> str:
    missed = [result for result in results if not result.met]
    if missed:
        told = listing(f"{r.label} is {r.verdict}, expected {r.expectation}" for r in missed)
        return f"Not met: {told}."
    if code == exits.INTERNAL:
        failures = sum(result.accounting.internal for result in results)
        return f"Our own machinery failed on {count(failures, 'case')}: see above."
    return "Every expectation is met."


def _settings(settings: Settings, *, control: bool) -> Settings:
    """Return the settings of one system; the control needs few cases unless a budget was given."""
    if control and settings.budget == Budget():
        return replace(
            settings,
            budget=CONTROL_BUDGET,
            policy=replace(settings.policy, minimise_seconds=5.0, minimise_total=10.0),
        )
    return settings


def _widened(overrides: Overrides) -> Overrides:
    """Return `overrides` with the rarely drawn numbers of ranks, unless world sizes were given."""
    if "world_sizes" in overrides.domain:
        return overrides
    sizes = ",".join(str(size) for size in (1, 2, 3, 4, *RARELY))
    return replace(overrides, domain={**overrides.domain, "world_sizes": sizes})

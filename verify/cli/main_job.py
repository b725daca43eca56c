"""The main job: the three systems that always work, each judged, in one table and one sentence.

`local`, plain batch norm on each rank, is the control: a run that does not report it is worth nothing, and
fails. `aggregated` must hold. `torch` must hold apart from its known discrepancies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TextIO

import msgspec

from verify import errors
from verify.config import DEFAULT_BUDGET, Budget, Config, Policy
from verify.engine.engine import Run, exit_code
from verify.report.summary import known_count, known_lines, sizes_words, verdict_words
from verify.report.words import count, listing, ratio
from verify.result import SubjectResult
from verify.subjects.builtins import BUILTINS

CONTROL_BUDGET = Budget(cases=60, net=DEFAULT_BUDGET.net)
CONTROL_TRIES = 200
RARELY = (5, 8)
"""Numbers of ranks that the main job draws rarely, beside the usual ones."""


def main_job(run: Run, stream: TextIO, *, known: bool = False) -> int:
    """Judge the three systems, write the table to `stream`, and return the exit code.

    Args:
        run: An open run.
        stream: Where to write.
        known: List the known discrepancies, too.
    """
    results = []
    for name, builtin in BUILTINS.items():
        subject = run.subject(name, expectation=builtin.expectation, config=_widened(run.config))
        results.append(
            run.campaign(subject, **_limits(run.config, control=builtin.expectation == "VIOLATED"))
        )
    code = exit_code(results)
    listed = [line for r in results if known and r.known for line in (f"{r.label}:", *known_lines(r.known))]
    stream.write("\n".join(("", *table(results), "", *listed, *conclusion(results, code))) + "\n")
    return code


def table(results: list[SubjectResult]) -> Iterator[str]:
    """Yield the lines of the table."""
    head = ("system", "verdict", "cases", "ranks", "properties", "greatest error")
    rows = [head, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _row(result: SubjectResult) -> tuple[str, ...]:
    control, stands = result.expectation == "VIOLATED", result.stands_on
    label = f"{result.label} (control)" if control else result.label
    words = "VIOLATED, as it must be" if control and result.met else verdict_words(result)
    error = f"{ratio(result.max_ratio)} x bound"
    return label, words, str(result.accounting.cases), sizes_words(stands), str(len(stands.properties)), error


def conclusion(results: list[SubjectResult], code: int) -> Iterator[str]:
    """Yield the sentence that says what came out, and what must be done about known discrepancies."""
    for result in results:
        if stale := [known.id for known in result.known if known.state == "stale"]:
            yield f"{result.label}: known discrepancies gone stale, to be removed: {listing(stale)}."
    missed = [result for result in results if not result.met]
    if missed:
        told = listing(f"{r.label} is {r.verdict}, expected {r.expectation}" for r in missed)
        yield f"Not met: {told}; see above."
    elif code == errors.INTERNAL:
        failures = sum(result.accounting.internal for result in results)
        yield f"Our own machinery failed on {count(failures, 'case')}: see above."
    else:
        yield f"{_met(results)}."


def _met(results: list[SubjectResult]) -> str:
    parts = [
        "the broken one was caught" if result.expectation == "VIOLATED" else "the right one passed"
        for result in results
        if not result.known
    ]
    for result in (result for result in results if result.known):
        seen = sum(known.state == "seen" for known in result.known)
        name = result.subject
        parts.append(f"{name} has {known_count(len(result.known))}, {seen} of them seen (--known lists them)")
    text = listing(parts)
    return text[:1].upper() + text[1:]


def _limits(config: Config, *, control: bool) -> dict[str, Any]:
    """Return the budget and policy of one system; the control needs few cases unless a budget was given."""
    if not control or config.budget != DEFAULT_BUDGET:
        return {}
    policy = Policy(fail_fast=config.fail_fast, tries=CONTROL_TRIES, tries_total=CONTROL_TRIES)
    return {"budget": CONTROL_BUDGET, "policy": policy}


def _widened(config: Config) -> Config:
    """Return `config` with the rarely drawn numbers of ranks, unless world sizes were given."""
    if "world_sizes" in config.domain_settings:
        return config
    return msgspec.structs.replace(config, world_sizes=",".join(map(str, (1, 2, 3, 4, *RARELY))))

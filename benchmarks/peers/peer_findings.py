"""Judging: which suites of the peers catch a subject, and what their first finding is."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.peers.checks import SUITES, Check
from benchmarks.peers.processes import Group, RankFailedError


@dataclass(slots=True)
class Judgement:
    """What the suites say of one subject.

    Attributes:
        caught: First finding by suite; a suite that is missing found nothing.
    """

    caught: dict[str, str] = field(default_factory=dict)


def judged(subject: str, suites: tuple[str, ...] = tuple(SUITES)) -> Judgement:
    """Run the checks of `suites` on `subject`, each once, as long as one that holds it has found nothing."""
    verdict = Judgement()
    held: dict[Check, list[str]] = {}
    for suite in suites:
        for check in SUITES[suite]:
            held.setdefault(check, []).append(suite)
    for world in sorted({len(check.batches) for check in held}):
        of_world = {check: names for check, names in held.items() if len(check.batches) == world}
        _judge(subject, world, of_world, verdict)
    return verdict


def _judge(subject: str, world: int, held: dict[Check, list[str]], verdict: Judgement) -> None:
    """Run checks on groups of `world` ranks; a group in which a rank raised or was lost is made anew."""
    remaining = list(held)
    while remaining:
        check = remaining[0]
        try:
            with Group(subject, world) as group:
                while remaining:
                    check = remaining.pop(0)
                    if all(name in verdict.caught for name in held[check]):
                        continue
                    answers = group.run(check)
                    _note(verdict, held[check], check, answers)
                    if any(answer.startswith("raised") for answer in answers):
                        break
        except RankFailedError as error:
            _note(verdict, held[check], check, [str(error)])


def _note(verdict: Judgement, suites: list[str], check: Check, answers: list[str]) -> None:
    findings = [answer for answer in answers if answer]
    for name in suites if findings else ():
        verdict.caught.setdefault(name, f"{check.name}: {findings[0]}")

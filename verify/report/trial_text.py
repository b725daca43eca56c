"""A trial in words: its case, every violation explained, and what each property says."""

from __future__ import annotations

from typing import TextIO

from properties.verdict import Outcome
from verify import errors
from verify.report.explain import Occurrence, explain, greatest
from verify.report.failing import SAME_CASE, also
from verify.report.resemblance import Diagnoses, Resemblance, evidence_of
from verify.report.words import case_words, ratio
from verify.subject import Subject
from verify.trial import Trial


def report_trial(
    trial: Trial,
    subject: Subject,
    stream: TextIO,
    *,
    diagnoses: Diagnoses | None = None,
    full: bool = False,
) -> int:
    """Write what `trial` said to `stream` and return the exit code.

    Args:
        trial: A trial.
        subject: What was run.
        stream: Where to write.
        diagnoses: What names causes; None for no diagnosis.
        full: Explain every violation; else one of each stage and cause, and the others in a line each.
    """
    evidence = evidence_of(subject, diagnoses)
    evidence.add(trial, minimal=False)
    case = trial.case
    stream.write(f"{subject.label}: case {case.id}, {case_words(case)}; seed {case.seed}\n")
    if trial.internal:
        stream.write(f"UNDECIDED: our own machinery failed.\n{trial.internal}")
        return errors.INTERNAL
    for first, *others in _by_cause(trial, evidence, full=full):
        occurrence = Occurrence(
            property_id=first, trial=trial, subject=subject, minimal=None, likeness=evidence.likeness(first)
        )
        text = explain(occurrence)[1]
        stream.write(f"\n{text}\n")
        if others:
            stream.write(f"{SAME_CASE}\n")
        for name in others:
            verdict = next(verdict for verdict in trial.verdicts if verdict.property == name)
            stream.write(f"{also(name, greatest(verdict))}\n")
    stream.write("\n")
    for verdict in trial.verdicts:
        size = f", greatest ratio {ratio(verdict.max_ratio)}" if verdict.max_ratio else ""
        reason = f", {verdict.reason}" if verdict.reason else ""
        stream.write(f"  {verdict.property:<20} {verdict.outcome.value}{size}{reason}\n")
    for excused in trial.excused:
        stream.write(f"  {excused.property:<20} excused by {excused.entry}\n")
    stream.write(f"{trial.outcome.value}\n")
    codes = {Outcome.HOLDS: errors.OK, Outcome.VIOLATED: errors.NOT_MET, Outcome.UNDECIDED: errors.UNDECIDED}
    return codes[trial.outcome]


def _by_cause(trial: Trial, evidence: Resemblance, *, full: bool) -> list[list[str]]:
    """Return the violated properties, those together that are of one stage and one cause, if any is told.

    What has no cause of its own goes to the first that is wrong in the same stage.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for name in trial.violated:
        likeness = evidence.likeness(name)
        stage, cause = likeness.stage[0], likeness.names[:1]
        alike = (told for told in found if stage and told[0] == stage and cause in (told[1:], ()))
        found.setdefault((name,) if full or not stage else next(alike, (stage, *cause)), []).append(name)
    return list(found.values())

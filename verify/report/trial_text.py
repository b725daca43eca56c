"""A trial in words: its case, every violation explained, and what each property says."""

from __future__ import annotations

from typing import TextIO

from properties.verdict import Outcome
from verify import errors
from verify.report.explain import Occurrence, explain
from verify.report.resemblance import Diagnoses, evidence_of
from verify.report.words import case_words, ratio
from verify.subject import Subject
from verify.trial import Trial


def report_trial(
    trial: Trial, subject: Subject, stream: TextIO, *, diagnoses: Diagnoses | None = None
) -> int:
    """Write what `trial` said to `stream` and return the exit code."""
    evidence = evidence_of(subject, diagnoses)
    evidence.add(trial, minimal=False)
    case = trial.case
    stream.write(f"{subject.label}: case {case.id}, {case_words(case)}; seed {case.seed}\n")
    if trial.internal:
        stream.write(f"UNDECIDED: our own machinery failed.\n{trial.internal}")
        return errors.INTERNAL
    for name in trial.violated:
        likeness = evidence.likeness(name)
        occurrence = Occurrence(
            property_id=name, trial=trial, subject=subject, minimal=None, likeness=likeness
        )
        text = explain(occurrence)[1]
        stream.write(f"\n{text}\n")
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

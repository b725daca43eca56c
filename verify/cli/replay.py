"""The command `replay`: one case, run once more, and everything it violates explained."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from properties.verdict import Outcome
from verify import errors
from verify.cli.run import settings_from
from verify.engine.engine import Run
from verify.errors import UsageError
from verify.pytest.shard import Undecided, Violated, shared_run
from verify.record.writing import data_folder, find_case
from verify.report.explain import Occurrence, explain
from verify.report.resemblance import Diagnoses, dossier_of
from verify.report.words import case_words, of_a_sample, ratio
from verify.subject import NO_OVERRIDES, Subject
from verify.trial import Trial


def replay_command(arguments: Namespace) -> int:
    """Do `python -m verify replay` and return its exit code.

    Raises:
        UsageError: Unless the command line has one case with its subject, or `--all`.
    """
    if (arguments.case is None) == (arguments.all is None):
        raise UsageError("Expected a case, or --all with a folder of cases, and not both; see replay --help.")
    if arguments.all is not None:
        from verify.cli.replay_all import replay_all_command

        return replay_all_command(arguments)
    if arguments.subject is None:
        raise UsageError("Expected --subject with a case, but got none; say what it is to be run on.")
    folders = ((Path(arguments.record),) if arguments.record else ()) + (data_folder(),)
    case = find_case(arguments.case, folders)
    with Run(settings_from(arguments)) as run:
        subject = run.subject(arguments.subject)
        trial = run.examiner(subject).examine(case)
        run.keep(trial)
        if not run.parts.admits(subject.promise.domain, case):
            sys.stdout.write(f"The case lies outside the domain of {subject.label}.\n")
    return tell(trial, subject, sys.stdout, diagnoses=run.parts.diagnoses)


def tell(trial: Trial, subject: Subject, stream: TextIO, *, diagnoses: Diagnoses | None = None) -> int:
    """Write what `trial` said to `stream` and return the exit code."""
    dossier = dossier_of(subject, diagnoses)
    dossier.add(trial, minimal=False)
    case = trial.case
    stream.write(f"{subject.label}: case {case.id}, {case_words(case)}; seed {case.seed}\n")
    if trial.internal:
        stream.write(f"UNDECIDED: our own machinery failed.\n{trial.internal}")
        return errors.INTERNAL
    for name in trial.violated:
        likeness = dossier.likeness(name)
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
    if unjudged := sum(verdict.unjudged for verdict in trial.verdicts):
        stream.write(f"  {of_a_sample(unjudged)}\n")
    stream.write(f"{trial.outcome.value}\n")
    codes = {Outcome.HOLDS: errors.OK, Outcome.VIOLATED: errors.NOT_MET, Outcome.UNDECIDED: errors.UNDECIDED}
    return codes[trial.outcome]


def examine_again(
    text: str, spec: str, *, device: str, backend: str | None, case_seconds: float | None = None
) -> None:
    """Run the case that `text` names on `spec` once, in this process's shared run.

    Raises:
        Violated: With one section a violated property.
        Undecided: If nothing was decided, or our own machinery failed.
    """
    run = shared_run(device, backend)
    case = find_case(text, (data_folder(),))
    subject = run.subject(spec, overrides=replace(NO_OVERRIDES, case_seconds=case_seconds))
    trial = run.examiner(subject).examine(case)
    run.keep(trial)
    written = io.StringIO()
    code = tell(trial, subject, written, diagnoses=run.parts.diagnoses)
    if code == errors.NOT_MET:
        raise Violated(written.getvalue())
    if code != errors.OK:
        raise Undecided(written.getvalue())

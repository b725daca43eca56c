"""The command `replay --all`: every failing case of a folder, run once more, a line each.

A folder is a record, of which the last run counts, with its arguments and subjects; or it holds case files,
itself or in `cases/`, as the user's data folder does.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TextIO

from properties.case import Case
from properties.verdict import Outcome
from verify import errors
from verify.cli.run import config_from
from verify.engine.engine import Run
from verify.engine.examiner import Examiner
from verify.errors import UsageError
from verify.record.journal import Journal
from verify.record.kept_cases import read_case
from verify.record.previous_run import PreviousRun, read
from verify.record.writing import JOURNAL
from verify.report.words import case_words, count, listing
from verify.subject import Subject
from verify.trial import Trial

Gathered = Mapping[str, tuple[Case, ...]]
"""Cases by the SPEC of the subject that they are to be run on."""


def replay_all_command(arguments: Namespace) -> int:
    """Do `python -m verify replay --all DIR` and return its exit code."""
    folder = Path(arguments.all)
    previous = _previous(folder)
    gathered = from_record(previous, arguments.subject) if previous else from_files(folder, arguments.subject)
    config = config_from(_as_recorded(arguments, previous) if previous else arguments)
    outcomes: Counter[Outcome] = Counter()
    internal = 0
    with Run(config, threads=1, cpu_only=True) as run:
        for spec, cases in gathered.items():
            subject = run.subject(spec)
            sys.stdout.write(f"{subject.label}: {count(len(cases), 'case')}\n")
            for trial in replayed(run.examiner(subject), cases):
                run.keep(trial)
                _tell(trial, subject, run, sys.stdout)
                outcomes[trial.outcome] += 1
                internal += bool(trial.internal)
    sys.stdout.write(f"{summary(outcomes)}\n")
    return exit_code(outcomes, internal=internal)


def from_record(previous: PreviousRun, spec: str | None) -> Gathered:
    """Return the failing cases of a record: those of the subject `spec` if the record has it, or all on it.

    Without `spec` each is run on the subject that it failed with.
    """
    failing = {name: tuple(cases.values()) for name, cases in previous.failing.items()}
    if spec is None:
        return failing
    unique = {case.id: case for cases in failing.values() for case in cases}
    return {spec: failing.get(spec) or tuple(unique.values())}


def from_files(folder: Path, spec: str | None) -> Gathered:
    """Return the cases of the files in `folder`, or in its `cases/`, by their names.

    Raises:
        UsageError: If there are none, or no subject is given.
        CaseError: If a file is not a case.
    """
    files = sorted({*folder.glob("*.json"), *folder.glob("cases/*.json")})
    files = [file for file in files if file.is_file() and not file.is_symlink()]
    if not files:
        raise UsageError(
            f"Expected a record or case files in the folder of --all, but {str(folder)!r} has none."
        )
    if spec is None:
        raise UsageError(
            f"Expected --subject with the case files of {str(folder)!r}, but got none; say whose they are."
        )
    unique = {case.id: case for case in map(read_case, files)}
    return {spec: tuple(unique.values())}


def replayed(examiner: Examiner, cases: Iterable[Case]) -> Iterable[Trial]:
    """Yield the trial of each case."""
    for case in cases:
        yield examiner.examine(case, grades=False)


def summary(outcomes: Counter[Outcome]) -> str:
    """Return the last line."""
    total = sum(outcomes.values())
    if not total:
        return "No case failed in that run: there is nothing to replay."
    told = [f"{outcomes[outcome]} {outcome.value}" for outcome in Outcome if outcomes[outcome]]
    return f"{count(total, 'case')} replayed: {listing(told)}."


def exit_code(outcomes: Counter[Outcome], *, internal: int) -> int:
    """Return 0 if no case fails any more, 1 if one does, 70 if ours failed, 2 if one is undecided."""
    if outcomes[Outcome.VIOLATED]:
        return errors.NOT_MET
    if internal:
        return errors.INTERNAL
    return errors.UNDECIDED if outcomes[Outcome.UNDECIDED] else errors.OK


def _previous(folder: Path) -> PreviousRun | None:
    """Return the last run of the record in `folder`; None if that is no record."""
    if not (folder / JOURNAL).is_file():
        return None
    try:
        with closing(Journal(folder / JOURNAL)) as journal:
            return read(journal)
    except OSError as error:
        raise UsageError(f"Expected a record, but {folder} cannot be read: {error.strerror}.") from None


def _as_recorded(arguments: Namespace, previous: PreviousRun) -> Namespace:
    """Return the command line with what it leaves out as the record's run had it."""
    before = previous.opening.arguments
    given = {word.partition("=")[0] for word in arguments.words}
    device = {} if "--device" in given else {"device": before.device, "backend": before.backend}
    return Namespace(
        **{
            **vars(arguments),
            **device,
            "contract": arguments.contract or list(before.contract),
            "grade": arguments.grade or before.grade,
            "properties": arguments.properties or before.properties,
        }
    )


def _tell(trial: Trial, subject: Subject, run: Run, stream: TextIO) -> None:
    words = trial.outcome.value
    if trial.violated:
        words = f"{words} {listing(trial.violated)}"
    elif trial.internal:
        words = f"{words} (our own machinery failed: {trial.internal.strip().splitlines()[-1]})"
    if not run.parts.admits(subject.promise.domain, trial.case):
        words = f"{words} (outside the domain)"
    stream.write(f"  {trial.case.id}  {words}: {case_words(trial.case)}\n")
    stream.flush()

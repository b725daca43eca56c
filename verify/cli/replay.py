"""The command `replay`: one case, run once more, and everything it violates explained."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from verify.cli.run import config_from
from verify.engine.engine import Run
from verify.errors import UsageError
from verify.record.kept_cases import data_folder, find_case
from verify.report.trial_text import report_trial


def replay_command(arguments: Namespace) -> int:
    """Do `python -m verify replay` and return its exit code.

    Raises:
        UsageError: Unless the command line has one case with its subject, or `--all`.
    """
    if (arguments.case is None) == (arguments.all is None):
        raise UsageError("Expected a case, or --all with a folder of cases, and not both; see replay --help.")
    if arguments.all is not None:
        if arguments.after or arguments.times > 1:
            raise UsageError("Expected --after and --times with one case, but got --all.")
        from verify.cli.replay_all import replay_all_command

        return replay_all_command(arguments)
    if arguments.subject is None:
        raise UsageError("Expected --subject with a case, but got none; say what it is to be run on.")
    folders = ((Path(arguments.record),) if arguments.record else ()) + (data_folder(),)
    case = find_case(arguments.case, folders)
    before = [find_case(text, folders) for text in arguments.after]
    with Run(config_from(arguments), threads=1, cpu_only=True) as run:
        subject = run.subject(arguments.subject)
        examiner = run.examiner(subject)
        for one in (*before, *[case] * (arguments.times - 1)):
            examiner.examine(one, grades=False)
        trial = examiner.examine(case)
        run.keep(trial)
        if not run.parts.admits(subject.promise.domain, case):
            sys.stdout.write(f"The case lies outside the domain of {subject.label}.\n")
    return report_trial(trial, subject, sys.stdout, diagnoses=run.parts.diagnoses, full=arguments.verbose)

"""The command line: picks the command, and turns every end into an exit code.

Light: a fork server re-executes the main module, and `--help` must be quick. What a command needs is imported
when it runs.
"""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from properties.case_checks import CaseError
from properties.domain import DomainError
from verify.cli.parser import parse
from verify.engine.interrupts import heeded
from verify.engine.launchers import launched
from verify.errors import INTERNAL, INTERRUPTED, OK, USAGE, SubjectError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own if None) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parse(words)
        arguments.words = words
        if refused := launched(os.environ):
            raise UsageError(refused)
        with heeded():
            return _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output is gone: nothing can be told any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    except (UsageError, CaseError, DomainError, SubjectError) as error:
        sys.stderr.write(f"{error}\n")
        return USAGE
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except Exception as error:  # the last resort: whatever it is, it is ours
        if _is_usage(error):
            sys.stderr.write(f"{error}\n")
            return USAGE
        sys.stderr.write(f"internal error:\n{traceback.format_exc()}")
        return INTERNAL


def _is_usage(error: Exception) -> bool:
    """Whether `error` blames the arguments; its classes are in modules that are not imported for --help."""
    from verify.known.entries import KnownError
    from verify.ranks.placement import PlanError

    return isinstance(error, KnownError | PlanError)


def _run(arguments: Namespace) -> int:
    from verify.ranks.server_client import ServerClient

    with ServerClient() as client:  # it starts while this process imports the rest
        from verify.cli.run import run_command

        return run_command(arguments, client)


def _replay(arguments: Namespace) -> int:
    from verify.cli.replay import replay_command

    return replay_command(arguments)


def _faults(arguments: Namespace) -> int:
    from verify.cli.faults import faults_command

    return faults_command(arguments)


def _bench(arguments: Namespace) -> int:
    from verify.cli.bench import bench_command

    return bench_command(arguments)


def _doctor(arguments: Namespace) -> int:
    from verify.cli.doctor import doctor_command

    return doctor_command(arguments)


def _properties(arguments: Namespace) -> int:
    from properties.judge.catalogue import listing, page

    if not arguments.table:
        sys.stdout.write(f"{listing()}\n")
        return OK
    try:
        Path(arguments.table).write_text(page(), "utf-8")
    except OSError as error:
        raise UsageError(
            f"Expected --table to be writable, but got {arguments.table!r}: {error.strerror}."
        ) from None
    return OK


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "run": _run,
    "replay": _replay,
    "faults": _faults,
    "bench": _bench,
    "properties": _properties,
    "doctor": _doctor,
}

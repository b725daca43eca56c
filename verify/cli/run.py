"""The command `run`: what the line asks for, its handlers, and the campaigns it asks for."""

from __future__ import annotations

import secrets
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from verify import errors
from verify.cli.resume import merged
from verify.config import Config, pairs
from verify.engine.engine import Run, exit_code
from verify.environment import backend_words, environment, one_line, version
from verify.errors import UsageError
from verify.events import Handler
from verify.ranks.server_client import ServerClient
from verify.record.previous_run import PreviousRun, read
from verify.record.writing import Record
from verify.report.json_report import Document
from verify.report.log import Detail, Lines
from verify.report.terminal import Terminal
from verify.report.words import count
from verify.strict_json import plain

_MANY = 100
"""Cases that need most of the reference's programs."""


def run_command(arguments: Namespace, client: ServerClient) -> int:
    """Do `python -m verify run` with the server of ranks behind `client`, and return the exit code."""
    with ExitStack() as stack:
        record = previous = None
        if arguments.resume:
            record = _record(stack, arguments.record)
            arguments, previous = _resumed(arguments, record)
        config = config_from(arguments)
        if arguments.record:
            record = record or _record(stack, arguments.record)
            _begin(record, arguments, config, resumed=previous is not None)
        run = stack.enter_context(
            open_run(arguments, config, record=record, previous=previous, client=client)
        )
        if run.config.cases is None or run.config.cases >= _MANY:
            stack.enter_context(run.parts.warmed())
        code = _campaigns(run, arguments.subject, known=arguments.known)
    return _tell_unwritten(run) or code


def _tell_unwritten(run: Run) -> int:
    """Tell what could not be written; return the exit code that this means, 0 for none."""
    code = errors.OK
    if run.unkept:
        sys.stderr.write(f"Failing cases were not kept in {run.unkept}; `replay ID` will not find them.\n")
    for handler in run.handlers:
        if isinstance(handler, Document) and handler.failed:
            sys.stderr.write(f"The results could not be written to {handler.failed}.\n")
            code = errors.INTERNAL
        elif isinstance(handler, Record) and handler.failed:
            sys.stderr.write(
                f"The record {handler.journal.path} could not be written: {handler.failed}. Judging ended "
                "there; what was judged is told above, and --resume goes on.\n"
            )
            code = errors.INTERNAL
    return code


def _campaigns(run: Run, specs: Sequence[str], *, known: bool) -> int:
    """Run the campaigns over `specs`, or the main job, and return the exit code."""
    if not specs:
        from verify.cli.main_job import main_job

        return main_job(run, sys.stdout, known=known)
    subjects = [run.subject(spec) for spec in dict.fromkeys(specs)]
    return exit_code([run.campaign(subject) for subject in subjects])


def config_from(arguments: Namespace) -> Config:
    """Return what a command line asks for; the seed is drawn where none is given.

    Raises:
        UsageError, DomainError: If it is not as expected.
    """
    if arguments.backend == "nccl" and arguments.device == "cpu":
        raise UsageError("Expected --device cuda with --backend nccl, but got --device cpu.")
    given = {name: value for name, value in vars(arguments).items() if name in Config.__struct_fields__}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    if given.get("seed") is None:
        given["seed"] = secrets.randbelow(2**32)
    if isinstance(given.get("subject"), str):  # of a replay
        given["subject"] = (given["subject"],)
    config = Config(**{name: value for name, value in given.items() if value is not None})
    _check(config)
    return config


def _check(config: Config) -> None:
    """Raise unless texts and names are as expected, before ranks start for them."""
    pairs(config.domain, "--domain")
    pairs(config.contract, "--contract")
    if config.properties is not None:
        from properties.judge.catalogue import select

        select(config.properties)


def _record(stack: ExitStack, folder: str | None) -> Record:
    """Open the record in `folder` until the stack ends, and say what was lost of it."""
    if not folder:
        raise UsageError("Expected --record DIR with --resume, but got none; say which record goes on.")
    with _writable("--record", folder):
        record = Record(Path(folder))
    stack.callback(record.close)
    if record.journal.torn:
        sys.stdout.write(
            f"record: the last entry of {record.journal.path} ends in the middle; "
            f"its {count(record.journal.torn, 'byte')} are left out.\n"
        )
    return record


def _resumed(arguments: Namespace, record: Record) -> tuple[Namespace, PreviousRun | None]:
    """Return the command line that goes on with the last run of `record`, and that run, if there is one."""
    previous = read(record.journal)
    if previous is None:
        sys.stdout.write(f"record: {record.journal.path} holds no run; this one begins it.\n")
        return arguments, None
    resumed = merged(arguments, previous.opening.arguments)
    for package, before in previous.opening.versions.items():
        if before != (now := version(package)):
            sys.stdout.write(f"record: begun with {package} {before}, going on with {now}.\n")
    sys.stdout.write(
        f"record: going on with the run in {record.journal.path}; "
        f"{count(previous.cases, 'case')} judged before.\n"
    )
    return resumed, previous


def _begin(record: Record, arguments: Namespace, config: Config, *, resumed: bool) -> None:
    """Write what is known of the run."""
    backend = backend_words(config.device, config.backend)
    facts: dict[str, Any] = {
        **environment(device=config.device, backend=backend),
        "command": ["verify", *arguments.words],
        "seed": config.seed,
        "arguments": plain(config),
    }
    with _writable("--record", arguments.record):
        record.begin({**facts, "resumed": True} if resumed else facts)


@contextmanager
def open_run(
    arguments: Namespace,
    config: Config,
    *,
    record: Record | None = None,
    previous: PreviousRun | None = None,
    client: ServerClient | None = None,
) -> Iterator[Run]:
    """Open the run of a command line, with its handlers, and close them all at the end."""
    with ExitStack() as stack:
        handlers = _handlers(stack, arguments, config)
        if record is not None:
            handlers.insert(0, record)  # recorded first
        yield stack.enter_context(
            Run(config, handlers, record=record, previous=previous, client=client, threads=1, cpu_only=True)
        )


def _handlers(stack: ExitStack, arguments: Namespace, config: Config) -> list[Handler]:
    """Return the reports to the terminal and to the file that `arguments` name."""
    backend = backend_words(config.device, config.backend)
    facts: dict[str, Any] = environment(device=config.device, backend=backend)
    command = ["verify", *arguments.words]
    sys.stdout.write(f"{one_line(device=config.device, backend=backend)}; seed {config.seed}\n")
    handlers: list[Handler] = []
    lines = Lines(sys.stdout, detail=_detail(arguments), known=arguments.known)
    if sys.stdout.isatty():
        terminal = Terminal(lines, sys.stdout)
        stack.callback(terminal.close)
        handlers.append(terminal)
    else:
        handlers.append(lines)
    if arguments.json:
        with _writable("--json", arguments.json):
            handlers.append(
                Document(Path(arguments.json), environment=facts, command=command, seed=config.seed)
            )
    return handlers


def _detail(arguments: Namespace) -> Detail:
    """Return how much is told: the main job ends with a table, and tells only what it did not expect."""
    if arguments.verbose:
        return "everything"
    return "usual" if arguments.subject else "unexpected"


@contextmanager
def _writable(option: str, path: str) -> Iterator[None]:
    """Turn a failure to open what `option` names into a bad argument."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"Expected {option} to be writable, but got {path!r}: {reason}.") from None

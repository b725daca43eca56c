"""The command `run`: the line's settings, its handlers, and the campaigns it asks for."""

from __future__ import annotations

import secrets
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from verify.arguments import UsageError, pairs
from verify.campaign import Budget, Policy
from verify.environment import backend_words, environment, one_line
from verify.events import Handler
from verify.record import Record
from verify.report.document import Document
from verify.report.lines import Lines
from verify.report.terminal import Terminal
from verify.run import Run, Settings, exit_code
from verify.subject import Overrides


def run_command(arguments: Namespace) -> int:
    """Do `python -m verify run` and return its exit code."""
    settings = settings_from(arguments)
    if not arguments.subject:
        from verify.main_job import main_job

        with open_run(arguments, settings) as run:
            return main_job(run, sys.stdout)
    with open_run(arguments, settings) as run:
        subjects = [run.subject(spec) for spec in dict.fromkeys(arguments.subject)]
        return exit_code([run.campaign(subject) for subject in subjects])


def settings_from(arguments: Namespace) -> Settings:
    """Return the settings of a command line.

    Raises:
        UsageError, DomainError: If they are not as expected.
    """
    if arguments.backend == "nccl" and arguments.device == "cpu":
        raise UsageError("Expected --device cuda with --backend nccl, but got --device cpu.")
    domain = pairs(getattr(arguments, "domain", []), "--domain")
    world_sizes = getattr(arguments, "world_sizes", None)
    if world_sizes is not None:
        domain["world_sizes"] = world_sizes
    seed = getattr(arguments, "seed", None)
    return Settings(
        seed=secrets.randbelow(2**32) if seed is None else seed,
        device=arguments.device,
        backend=arguments.backend,
        budget=Budget.of(getattr(arguments, "cases", None), getattr(arguments, "seconds", None)),
        policy=Policy(fail_fast=getattr(arguments, "fail_fast", False)),
        overrides=Overrides(
            domain=domain, contract=pairs(arguments.contract, "--contract"), grade=arguments.grade
        ),
        only=_properties(arguments.properties),
    )


def _properties(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    from properties.catalogue import select

    return select(names)


@contextmanager
def open_run(arguments: Namespace, settings: Settings) -> Iterator[Run]:
    """Open the run of a command line, with its handlers, and close them all at the end."""
    with ExitStack() as stack:
        yield _open(stack, arguments, settings)


def _open(stack: ExitStack, arguments: Namespace, settings: Settings) -> Run:
    """Return an open run that reports to the terminal and to the files that `arguments` name."""
    backend = backend_words(settings.device, settings.backend)
    facts: dict[str, Any] = environment(device=settings.device, backend=backend)
    command = ["verify", *arguments.words]
    sys.stdout.write(f"{one_line(device=settings.device, backend=backend)}; seed {settings.seed}\n")
    handlers: list[Handler] = []
    if sys.stdout.isatty():
        terminal = Terminal(sys.stdout)
        stack.callback(terminal.close)
        handlers.append(terminal)
    else:
        handlers.append(Lines(sys.stdout))
    record = None
    if arguments.record:
        with _writable("--record", arguments.record):
            record = Record(Path(arguments.record), {**facts, "command": command, "seed": settings.seed})
        stack.callback(record.close)
        handlers.append(record)
    if arguments.json:
        with _writable("--json", arguments.json):
            handlers.append(
                Document(Path(arguments.json), environment=facts, command=command, seed=settings.seed)
            )
    return stack.enter_context(Run(settings, handlers, record=record))


@contextmanager
def _writable(option: str, path: str) -> Iterator[None]:
    """Turn a failure to open what `option` names into a bad argument."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"Expected {option} to be writable, but got {path!r}: {reason}.") from None

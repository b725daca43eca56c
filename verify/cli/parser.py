"""Arguments: the command line as plain data; parsing it imports nothing heavy.

Every mistake is a `UsageError` of one line: what was expected, what was given.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias

from properties.domain import Contract, Domain, keys_text
from verify.config import DEFAULT_BUDGET, DEFAULT_MIN_CASES
from verify.errors import UsageError
from verify.subjects.builtins import BUILTINS

_BUDGET = f"{DEFAULT_BUDGET.cases} unless --seconds is given"
_NET = f"; a run without either is cut off after {DEFAULT_BUDGET.net:g} s, says so, and decides nothing"

EXIT_CODES = """exit codes:
  0    every subject met its expectation (a control is expected to be VIOLATED; what a known discrepancy
       excuses does not count)
  1    an expectation was not met
  2    undecided, and nothing violated
  64   bad arguments, or a subject that cannot be loaded
  70   internal error: our own machinery failed, on at least one case or altogether
  130  interrupted
"""

FAULTS_TEXT = """The faults are judged on the CPU. Each campaign ends once all the properties that must catch
its fault are violated. 0 means: every fault is caught on every seed by all of them, no right subject is
accused, and, for the whole catalogue without --quick, causes are named as often as they must be. Else it is
1. A cause is best told from a minimal case, for which --quick leaves little time.

"""

BENCH_TEXT = """Figures: harness, draw, spawn, share, memory, start, compilations, parallel,
large, growth. Give the machine nothing else to do meanwhile. 0 means: every target is met. Else it is 1.

"""

PLACES_TEXT = """environment:
  SYNCBN_VERIFY_DATA  folder in which failing cases are kept, in place of the user's data folder

"""

_LISTING = "{properties}"
COMMANDS = "run, replay, faults, bench, properties, doctor"
LATER = ("recheck", "report", "baseline")
"""Commands that a later version will have."""


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        """Return the help with the list of properties, which is loaded for it alone: it needs numpy."""
        text = super().format_help()
        if _LISTING not in text:
            return text
        from properties.judge.catalogue import listing

        return text.replace(_LISTING, listing())

    def error(self, message: str) -> NoReturn:
        """Raise instead of ending the process with argparse's own exit code."""
        raise UsageError(f"{self.prog}: {message}")


Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m verify`."""
    root = _Parser(
        prog="verify",
        description="Finds out whether a synchronized batch norm equals batch norm over the whole batch.",
        epilog=PLACES_TEXT + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = root.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _add_run(commands)
    _add_replay(commands)
    _add_faults(commands)
    _add_bench(commands)
    doctor = _command(
        commands, "doctor", "tell versions, cores, shared memory, and whether rank groups start"
    )
    _add_device(doctor)
    properties = _command(commands, "properties", "list what is judged, or write the page of it")
    properties.add_argument("--table", metavar="FILE", help="write the page docs/properties.md")
    return root


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line.

    Raises:
        UsageError: If it cannot be run.
    """
    root = parser()
    arguments = list(argv) if argv is not None else None
    first = next((word for word in arguments or [] if not word.startswith("-")), "")
    if first in LATER:
        raise UsageError(f"Expected a command among {COMMANDS}, but got {first!r}: not in this version yet.")
    namespace = root.parse_args(arguments)
    if namespace.command is None:
        raise UsageError(f"Expected a command among {COMMANDS}, but got none; see --help.")
    return namespace


def _command(commands: Commands, name: str, text: str, **more: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=more.get("epilog", "") + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return made


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the ranks compute (cpu)"
    )
    command.add_argument(
        "--backend", choices=("gloo", "nccl"), help="how they communicate (gloo; nccl with one GPU a rank)"
    )


def _add_promise(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--grade", choices=("A", "B", "C"), help="accuracy to require (the factory's, else A)"
    )
    command.add_argument(
        "--contract", action="append", default=[], metavar="K=V", help="a convention; see below"
    )
    command.add_argument(
        "--properties", type=_names, metavar="ID,...", help="judge these properties only (default all)"
    )
    command.add_argument(
        "--case-seconds",
        type=_positive,
        metavar="S",
        help="seconds that one small case may take on the ranks, for a slow subject (the factory's, else 10)",
    )


def _add_run(commands: Commands) -> None:
    command = _command(
        commands,
        "run",
        "draw cases and judge subjects; without --subject, the three built-in systems",
        epilog=_keys() + _properties() + PLACES_TEXT,
    )
    command.add_argument(
        "--subject",
        action="append",
        default=[],
        metavar="SPEC",
        help=f"module:factory, file.py:factory, or {', '.join(BUILTINS)}; may be repeated",
    )
    _add_device(command)
    command.add_argument(
        "--world-sizes", metavar="N,...", help="numbers of ranks (the domain's, else 1,2,3,4)"
    )
    command.add_argument("--cases", type=_at_least(1), metavar="N", help=f"cases a subject ({_BUDGET})")
    command.add_argument(
        "--seconds", type=_positive, metavar="S", help="seconds a subject, minimising included" + _NET
    )
    command.add_argument(
        "--min-cases",
        type=_at_least(1),
        metavar="N",
        help=f"cases that a verdict HOLDS needs, a quarter of them with several ranks ({DEFAULT_MIN_CASES}); "
        "below that it is UNDECIDED",
    )
    command.add_argument("--seed", type=_at_least(0), metavar="N", help="seed of the draws (random, printed)")
    _add_promise(command)
    command.add_argument(
        "--domain", action="append", default=[], metavar="K=V", help="narrow or widen the domain"
    )
    command.add_argument("--fail-fast", action="store_true", help="end at the first failing case, minimised")
    command.add_argument("--record", metavar="DIR", help="append every trial to DIR/record.jsonl")
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on with the last run of --record: same seed and arguments, nothing judged twice",
    )
    command.add_argument("--json", metavar="FILE", help="write the results as JSON")
    command.add_argument(
        "-v", "--verbose", action="store_true", help="tell everything: each failure, all counts, known ones"
    )
    command.add_argument(
        "--known", action="store_true", help="list the known discrepancies, each with its state"
    )


def _add_replay(commands: Commands) -> None:
    command = _command(
        commands,
        "replay",
        "run one case again and explain what it violates, or all that failed",
        epilog=_keys(domain=False) + PLACES_TEXT,
    )
    command.add_argument(
        "case", nargs="?", metavar="CASE", help="id of a kept case, a file, or the case as JSON"
    )
    command.add_argument(
        "--all", metavar="DIR", help="every failing case of a record, or every case file of a folder"
    )
    command.add_argument("--subject", metavar="SPEC", help="as for run (with --all, the record's)")
    command.add_argument(
        "--after",
        action="append",
        default=[],
        metavar="CASE",
        help="run this case before it, on the same ranks",
    )
    command.add_argument(
        "--times", type=_at_least(1), default=1, metavar="N", help="run it N times and judge the last (1)"
    )
    _add_device(command)
    _add_promise(command)
    command.add_argument("--record", metavar="DIR", help="look the id up here first")
    command.add_argument(
        "-v", "--verbose", action="store_true", help="explain each violated property, not one a cause"
    )


def _add_faults(commands: Commands) -> None:
    command = _command(
        commands,
        "faults",
        "judge the fault catalogue and the right subjects, and tell what the suite catches",
        epilog=FAULTS_TEXT,
    )
    command.add_argument(
        "names",
        nargs="*",
        metavar="ID|FAMILY",
        help="these faults and right subjects only, `right` and `written` being families of the latter (all)",
    )
    command.add_argument(
        "--seeds", type=_at_least(1), metavar="N", help="judge each fault on the seeds 1 to N (5)"
    )
    command.add_argument(
        "--cases", type=_at_least(1), metavar="N", help=f"cases a fault and seed ({_BUDGET})"
    )
    command.add_argument("--seconds", type=_positive, metavar="S", help="seconds a fault and seed")
    command.add_argument(
        "--right",
        type=_at_least(0),
        metavar="N",
        help="cases over all right subjects that are named, or all (2000; 0 where only faults are named)",
    )
    command.add_argument(
        "--domain", action="append", default=[], metavar="K=V", help="narrow the domain of right subjects"
    )
    command.add_argument("--quick", action="store_true", help="one seed, little minimising, 400 right cases")
    command.add_argument("--workers", type=_at_least(1), metavar="N", help="worker processes (one a core)")
    command.add_argument("--json", metavar="FILE", help="write everything as JSON")
    command.add_argument("--table", metavar="FILE", help="write the page docs/faults.md")
    command.add_argument(
        "--sensitivity", action="store_true", help="instead: how small an error of a right subject is caught"
    )
    command.add_argument(
        "--diagnosis",
        action="store_true",
        help="instead: which stage and cause reports name, of subjects that causes are not tuned on",
    )


def _add_bench(commands: Commands) -> None:
    command = _command(
        commands,
        "bench",
        "measure how fast the suite is, each figure beside its target",
        epilog=BENCH_TEXT,
    )
    command.add_argument("names", nargs="*", metavar="FIGURE", help="these figures only (all)")
    command.add_argument(
        "--json", metavar="FILE", help="write the figures, and what they are made of, as JSON"
    )
    command.add_argument(
        "--record-history", action="store_true", help="append the figures to benchmarks/history.jsonl"
    )
    command.add_argument("--quick", action="store_true", help="as little as possible; the numbers say little")
    command.add_argument(
        "--memory-cases", type=_at_least(2), metavar="N", help="cases over which memory is watched (1000)"
    )


def _keys(*, domain: bool = True) -> str:
    parts = [("contract", Contract), *((("domain", Domain),) if domain else ())]
    text = ""
    for name, kind in parts:
        lines = keys_text(kind).replace("\n", "\n  ")
        text += f"keys of --{name}:\n  {lines}\n\n"
    return text


def _properties() -> str:
    return f"ids of --properties (docs/properties.md says when each is not judged):\n{_LISTING}\n\n"


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"Expected an integer of {least} or more, but got {text!r}.")
        return value

    return number


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"Expected a number of seconds above 0, but got {text!r}.")
    return value

"""Resuming: the command line of a run that goes on, made of that of the record and of what is given again.

An option that is not given is the record's. One that is given must say the same, but `--cases` and
`--seconds` may be raised.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from verify.config import Budget, Config
from verify.errors import UsageError


def merged(arguments: Namespace, before: Config) -> Namespace:
    """Return the command line that goes on with a run.

    Args:
        arguments: As given with --resume.
        before: Of the run that goes on.

    Raises:
        UsageError: If an option that is given contradicts the record's.
    """
    given = set(_given(arguments))
    same = [name for name in Config.__struct_fields__ if name not in ("cases", "seconds")]
    for name in same:
        told, was = _comparable(getattr(arguments, name)), _comparable(getattr(before, name))
        if name in given and told != was:
            raise UsageError(
                f"Expected {_option(name)} to be the record's, {_words(was)}, but got {_words(told)}; "
                "record a run of its own, or leave it out."
            )
    kept = {name: getattr(before, name) for name in same}
    budget = _raised(arguments, before, given)
    return Namespace(**{**vars(arguments), **kept, "cases": budget[0], "seconds": budget[1]})


def _raised(arguments: Namespace, before: Config, given: set[str]) -> tuple[int | None, float | None]:
    """Return --cases and --seconds, raised where they are given."""
    limits = Budget.of(before.cases, before.seconds)
    for name in ("cases", "seconds"):
        if name not in given:
            continue
        least, told = getattr(limits, name), getattr(arguments, name)
        if name == "seconds" and least is None:
            least = limits.net  # behind the default budget
        if least is None:
            raise UsageError(
                f"Expected no {_option(name)}, since the record has no such limit, but got {told}."
            )
        if told < least:
            raise UsageError(f"Expected {_option(name)} of the record's {least:g} or more, but got {told:g}.")
    if not given & {"cases", "seconds"}:
        return before.cases, before.seconds
    # The default budget has both limits: one that is given alone is the whole budget, as ever.
    return tuple(
        getattr(arguments, name) if name in given else getattr(before, name) for name in ("cases", "seconds")
    )


def _given(arguments: Namespace) -> Iterator[str]:
    """Yield the names of the options that the command line has."""
    for word in arguments.words:
        if word.startswith("--"):
            yield word[2:].partition("=")[0].replace("-", "_")


def _comparable(value: object) -> object:
    """Return `value` so that what means the same is equal."""
    return sorted(set(value)) if isinstance(value, list | tuple) else value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _words(value: object) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

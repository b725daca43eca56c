"""A subject as a campaign sees it: its SPEC, its promise, its known discrepancies, and how messages call it.

A rank loads the user's module and answers `describe`; the parent never imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from properties.case import Case
from properties.domain import Domain, DomainError, Promise, for_slow, override, promise_from
from verify.config import DEFAULT_CONFIG, Config
from verify.environment import backend_words
from verify.known.entries import SHIPPED, Entry, KnownError, concerned, load

DEFAULT_PROMISE = Promise()
KEYWORDS = ("eps", "momentum", "affine", "track_running_stats", "process_group", "bias")
"""Keywords of the constructor that widen the domain; a subject that does not take one is not asked for it."""


class Describes(Protocol):
    """The part of a subject's description that is needed here (`verify.ranks.pool.Description`)."""

    @property
    def promise(self) -> dict[str, object]: ...  # noqa: D102

    @property
    def file(self) -> str: ...  # noqa: D102

    @property
    def keywords(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def converts(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A SyncBN under test.

    Attributes:
        spec: As given by the user.
        label: How messages call it.
        promise: Domain, contract and grade it is judged by.
        known: Its known discrepancies.
        expectation: HOLDS, or VIOLATED for a control.
        device, backend: Where its ranks run.
        options: Command-line options that a replay needs to be the same.
        narrowed: Keys of the domain that the command line set.
        lacking: Keywords that the factory does not take; what they say is out of its domain.
        converts: The factory offers `convert_sync_batchnorm`, so that its conversion is judged.
    """

    spec: str
    label: str
    promise: Promise = DEFAULT_PROMISE
    known: tuple[Entry, ...] = ()
    expectation: str = "HOLDS"
    device: str = "cpu"
    backend: str = "gloo"
    options: tuple[str, ...] = ()
    narrowed: frozenset[str] = frozenset()
    lacking: tuple[str, ...] = ()
    converts: bool = False

    @property
    def fixed(self) -> dict[str, float]:
        """Fields of a case that must stay at their default, since the factory takes no keyword for them."""
        return {name: getattr(Case(), name) for name in ("eps", "momentum") if name in self.lacking}


def subject_from(
    spec: str,
    description: Describes,
    *,
    label: str | None = None,
    expectation: str = "HOLDS",
    config: Config = DEFAULT_CONFIG,
) -> Subject:
    """Return the subject that a rank described, with what the user asked for in place of its promise.

    Args:
        spec: As given by the user.
        description: What a rank answered.
        label: How messages call it; the SPEC unless given.
        expectation: HOLDS, or VIOLATED for a control.
        config: What the user asked for.

    Raises:
        DomainError: On an unknown key or value.
        KnownError: If the file of known discrepancies cannot be read.
    """
    promise = override(
        promise_from(description.promise),
        domain=config.domain_settings,
        contract=config.contract_settings,
        grade=config.grade,
    )
    if config.case_seconds:
        promise = for_slow(promise, config.case_seconds, keep_sizes="sizes" in config.domain_settings)
    lacking = tuple(name for name in KEYWORDS if name not in description.keywords)
    return Subject(
        spec=spec,
        label=label or spec,
        promise=msgspec.structs.replace(promise, domain=_within(promise.domain, lacking)),
        known=concerned(_known(promise.known, description.file), device=config.device),
        expectation=expectation,
        device=config.device,
        backend=backend_words(config.device, config.backend),
        options=_options(config.device, config.backend) + config.replay_options,
        narrowed=frozenset(config.domain_settings),
        lacking=lacking,
        converts=description.converts,
    )


def _within(domain: Domain, lacking: tuple[str, ...]) -> Domain:
    """Return `domain` without the cases that a factory lacking these keywords cannot be built for.

    Raises:
        DomainError: If none is left.
    """
    changes: dict[str, Any] = {}
    if "affine" in lacking:
        changes["affine"] = tuple(value for value in domain.affine if value == "both")
    elif "bias" in lacking:
        changes["affine"] = tuple(value for value in domain.affine if value != "weight")
    if "track_running_stats" in lacking:
        changes["tracking"] = tuple(value for value in domain.tracking if value)
    if "process_group" in lacking:
        changes["groups"] = tuple(value for value in domain.groups if value == "world")
    if "momentum" in lacking:
        changes["momentum_none"] = False
    if "eps" in lacking:
        changes["eps"] = tuple(value for value in domain.eps if value == "positive")
    try:
        return msgspec.structs.replace(domain, **changes)
    except DomainError:
        raise DomainError(
            f"Expected a domain that a factory without {', '.join(lacking)} can meet, but got {domain!r}."
        ) from None


def _options(device: str, backend: str | None) -> tuple[str, ...]:
    if device == "cpu":
        return ()
    return (f"--device {device}", *((f"--backend {backend}",) if backend else ()))


def _known(path: str, file: str) -> tuple[Entry, ...]:
    if not path:
        return ()
    if path in SHIPPED:
        return load(SHIPPED[path])
    beside = Path(file).parent / path if file else Path(path)
    for candidate in (beside, Path(path)):
        if candidate.is_file():
            return load(candidate)
    raise KnownError(f"Expected a file of known discrepancies, but got known={path!r}; looked at {beside}.")

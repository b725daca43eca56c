"""Stamps: what a page was made of, as digests in a comment at its end, so that a stale page is found.

A page that a command makes speaks of cases and of catalogues that change without it. The command stamps the
page with digests of what it was made of; a test compares them with what they are now. A page without a stamp
is as old as one can be.
"""

from __future__ import annotations

import hashlib
import random
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verify.faults.cards import Card

CASES = 200
"""Cases that stand for all that the generator draws."""
UNKNOWN = "unknown, without a stamp"
_STAMP = re.compile(r"<!-- made of ([^>]*) -->\n?\Z")


class StalePage(UserWarning):
    """A page that speaks of what is not so any more."""


def digest(texts: Iterable[str]) -> str:
    """Return twelve hexadecimal digits of a list of texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def stamped(page: str, made_of: Mapping[str, str]) -> str:
    """Return `page` with a stamp.

    Args:
        page: Markdown that has none.
        made_of: Digests by the name of what the page was made of.
    """
    parts = ", ".join(f"{name} {value}" for name, value in made_of.items())
    return f"{page.rstrip()}\n\n<!-- made of {parts} -->\n"


def stale(page: str, made_of: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of what has changed since `page` was made; none if it is as it would be now."""
    found = _STAMP.search(page)
    if found is None:
        return (UNKNOWN,)
    before = dict(part.rsplit(" ", 1) for part in found[1].split(", ") if " " in part)
    return tuple(name for name in {**before, **made_of} if before.get(name) != made_of.get(name))


def warn_if_stale(page: Path, made_of: Mapping[str, str]) -> None:
    """Warn with `StalePage` unless `page` is as it would be now."""
    if changed := stale(page.read_text("utf-8"), made_of):
        warnings.warn(
            StalePage(f"{page.name} is stale ({', '.join(changed)}); its head has the command that makes it"),
            stacklevel=2,
        )


def generator() -> dict[str, str]:
    """Return the digest of the first cases that the default domain gives."""
    from properties.domain import Domain
    from properties.generation.strategies import random_case

    source = random.Random(1)
    return {"cases": digest(random_case(source, Domain()).id for _ in range(CASES))}


def of_faults(judged: Iterable[Card] | None = None) -> dict[str, str]:
    """Return what `docs/faults.md` and `docs/peers.md` are made of.

    Args:
        judged: The faults of the page; all of the catalogue unless given.
    """
    from verify.faults.cards import cards

    listed = sorted(f"{card.id}: {', '.join(card.caught_by)}" for card in (judged or cards()))
    return {**generator(), "faults": digest(listed)}


def of_apart() -> dict[str, str]:
    """Return what `docs/diagnosis.md` is made of."""
    from verify.faults.apart_cards import apart_cards

    listed = sorted(f"{card.id}: {card.stage} {list(card.classes)}" for card in apart_cards())
    return {**generator(), "subjects": digest(listed)}

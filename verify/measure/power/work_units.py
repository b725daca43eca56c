"""A unit of work: a faulty subject and a seed, or some cases of a right one; JSON, so that it can travel."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from verify.config import DEFAULT_BUDGET, DEFAULT_POLICY, Budget
from verify.faults.apart_cards import ApartCard
from verify.faults.cards import Card, RightCard

CHUNK = 250
"""Cases of a right subject in one unit, so that workers share them evenly and a lost worker loses little."""


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How long a unit may take.

    Attributes:
        cases, seconds, net: As in `verify.config.Budget`.
        tries, tries_total: As in `verify.config.Policy`.
        diagnose: Whether to look for causes, too.
    """

    cases: int | None = DEFAULT_BUDGET.cases
    seconds: float | None = DEFAULT_BUDGET.seconds
    net: float | None = DEFAULT_BUDGET.net
    tries: int = DEFAULT_POLICY.tries
    tries_total: int = DEFAULT_POLICY.tries_total
    diagnose: bool = True

    @property
    def budget(self) -> Budget:
        """The budget of its campaign."""
        return Budget(cases=self.cases, seconds=self.seconds, net=self.net)


QUICK_TRIES = 60
"""Candidates that minimising may run where only the verdict matters."""


class FaultUnit(msgspec.Struct, frozen=True, kw_only=True, tag_field="unit", tag="fault"):
    """One fault, to be caught with the draws of one seed."""

    card: Card
    seed: int
    effort: Effort = Effort()

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.card.id}, seed {self.seed}"


class RightUnit(msgspec.Struct, frozen=True, kw_only=True, tag_field="unit", tag="right"):
    """Some cases of a right subject, which must not be accused, in its domain as `domain` narrows it."""

    card: RightCard
    seed: int
    cases: int
    domain: dict[str, str] = {}

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.card.spec}, {self.cases} cases of seed {self.seed}"


class ApartUnit(msgspec.Struct, frozen=True, kw_only=True, tag_field="unit", tag="apart"):
    """A subject apart, of whose report the stage and the causes are looked at."""

    card: ApartCard
    seed: int
    effort: Effort = Effort()

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.card.id}, seed {self.seed}"


Unit = FaultUnit | RightUnit | ApartUnit


class SelectionError(ValueError):
    """Names that select no fault; the message is one line."""


def chosen(
    cards: Sequence[Card], right: Sequence[RightCard], names: Collection[str]
) -> tuple[tuple[Card, ...], tuple[RightCard, ...]]:
    """Return the faults whose id or family is in `names`, and right subjects likewise; all if it is empty.

    Raises:
        SelectionError: If a name is that of no fault, no right subject and no family.
    """
    families = {card.family for card in cards} | {card.family for card in right}
    known = families | {card.id for card in cards} | {card.name for card in right}
    if unknown := sorted(set(names) - known):
        raise SelectionError(
            f"Expected ids of faults, right subjects, or families among {', '.join(sorted(families))}, "
            f"but got {', '.join(unknown)}."
        )
    return (
        tuple(card for card in cards if not names or {card.id, card.family} & set(names)),
        tuple(card for card in right if not names or {card.name, card.family} & set(names)),
    )


def fault_units(cards: Sequence[Card], *, seeds: int, effort: Effort) -> Iterator[FaultUnit]:
    """Yield one unit a fault and seed 1 to `seeds`, all faults of a seed together.

    Minimal cases and causes are looked for on seed 1; other seeds and masked faults only show who is caught.
    """
    least = min(effort.tries, QUICK_TRIES)
    quick = msgspec.structs.replace(effort, tries=least, tries_total=least, diagnose=False)
    for seed in range(1, seeds + 1):
        for card in cards:
            yield FaultUnit(card=card, seed=seed, effort=quick if seed > 1 or card.masked else effort)


def right_units(
    cards: Sequence[RightCard], *, cases: int, chunk: int = CHUNK, domain: Mapping[str, str] | None = None
) -> Iterator[RightUnit]:
    """Yield units that together have `cases` cases, spread over the subjects; every unit has its own seed."""
    shares = [cases // len(cards) + (index < cases % len(cards)) for index in range(len(cards))]
    for index, (card, share) in enumerate(zip(cards, shares, strict=True)):
        for number, begin in enumerate(range(0, share, chunk)):
            seed = 1 + number * len(cards) + index
            yield RightUnit(card=card, seed=seed, cases=min(chunk, share - begin), domain=dict(domain or {}))

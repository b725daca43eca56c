"""Cards, units and outcomes of faults that do not exist."""

from __future__ import annotations

from typing import Any

from verify.faults.cards import Card, RightCard
from verify.measure.power.outcome import Done, FaultOutcome, RightOutcome, Smallest
from verify.measure.power.work_units import FaultUnit, RightUnit

RIGHT = (
    RightCard(spec="right:A", differs="", family="right"),
    RightCard(spec="right:B", differs="", grade="B", family="written"),
)


def card(name: str = "fault", **more: Any) -> Card:
    """Return the card of an invented fault."""
    fields: dict[str, Any] = {
        "subject": "Faulty",
        "number": 1,
        "wrong": "Wrong.",
        "effect": "Bad.",
        "trigger": "Always.",
        "source": "a thread",
        "caught_by": ("forward",),
        "family": "family",
    }
    return Card(id=name, **{**fields, **more})


def units(*cards: Card, seeds: int = 1) -> tuple[FaultUnit, ...]:
    """Return units of these faults."""
    return tuple(FaultUnit(card=one, seed=seed) for one in cards for seed in range(1, seeds + 1))


def smallest(ranks: int = 2, channels: int = 1, **more: Any) -> Smallest:
    """Return a minimal case of this size."""
    case = '{"batches":[1,1]}'
    fields: dict[str, Any] = {"violates": "forward", "values": 2, "size": len(case), "complete": True}
    return Smallest(ranks=ranks, channels=channels, case=case, **{**fields, **more})


def caught(unit: FaultUnit, **more: Any) -> Done:
    """Return the unit with an outcome that catches its fault."""
    fields: dict[str, Any] = {
        "properties": unit.card.caught_by,
        "cases": 2,
        "seconds": 0.5,
        "drawn": 3,
        "total_seconds": 2.0,
        "smallest": smallest(),
    }
    return Done(unit=unit, outcome=FaultOutcome(fault=unit.card.id, seed=unit.seed, **{**fields, **more}))


def missed(unit: FaultUnit, **more: Any) -> Done:
    """Return the unit with an outcome that misses its fault."""
    return Done(
        unit=unit,
        outcome=FaultOutcome(
            fault=unit.card.id, seed=unit.seed, lacking=unit.card.caught_by, drawn=300, **more
        ),
    )


def acquitted(unit: RightUnit, **more: Any) -> Done:
    """Return the unit with an outcome that accuses nobody."""
    outcome = RightOutcome(
        spec=unit.card.spec, grade=unit.card.grade, seed=unit.seed, **{"cases": unit.cases, **more}
    )
    return Done(unit=unit, outcome=outcome)

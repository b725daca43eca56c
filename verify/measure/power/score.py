"""The score: outcomes of all seeds together, a row a fault, with totals and the targets to meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from properties.judge.catalogue import PROPERTIES
from verify import errors
from verify.faults.cards import Card
from verify.measure.power.outcome import Accusation, Broken, Cell, Done, FaultOutcome, RightOutcome, Smallest
from verify.measure.power.work_units import FaultUnit, RightUnit, Unit

NAMED_TARGET = 0.9
"""Share of nameable faults whose true class must be among the classes of the causes named."""
FALSELY_TARGET = 0.1
"""Share of faults outside the hypotheses for which a cause may be named."""


@dataclass(frozen=True, slots=True)
class Row:
    """What all seeds say of one fault.

    Attributes:
        card: The fault.
        outcomes: By seed, those that there are.
        wanted: Number of seeds.
        broken: Why units were lost, if any were.
    """

    card: Card
    outcomes: tuple[FaultOutcome, ...]
    wanted: int
    broken: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether every seed was judged, or lost."""
        return len(self.outcomes) + len(self.broken) >= self.wanted

    @property
    def caught(self) -> int:
        """Seeds on which any property was violated."""
        return sum(outcome.caught for outcome in self.outcomes)

    @property
    def complete(self) -> bool:
        """Whether every seed was judged, and violated all properties that the card says."""
        return len(self.outcomes) == self.wanted and not self.lacking

    @property
    def lacking(self) -> tuple[str, ...]:
        """Properties of the card that were not violated on some seed."""
        return _ordered(name for outcome in self.outcomes for name in outcome.lacking)

    @property
    def properties(self) -> tuple[str, ...]:
        """Properties violated on any seed."""
        return _ordered(name for outcome in self.outcomes for name in outcome.properties)

    @property
    def cases(self) -> float | None:
        """Median number of cases until the first failure, over the seeds that found one."""
        found = [outcome.cases for outcome in self.outcomes if outcome.caught]
        return median(found) if found else None

    @property
    def latest(self) -> int:
        """Greatest number of cases until the first failure."""
        return max((outcome.cases for outcome in self.outcomes if outcome.caught), default=0)

    @property
    def seconds(self) -> float | None:
        """Median of the seconds until the first failure, over the seeds that found one."""
        found = [outcome.seconds for outcome in self.outcomes if outcome.caught]
        return median(found) if found else None

    @property
    def minimal(self) -> Smallest | None:
        """The largest minimal case of the seeds that were minimised in full, those that were diagnosed."""
        full = [outcome for outcome in self.outcomes if outcome.diagnosed] or self.outcomes
        found = [outcome.smallest for outcome in full if outcome.smallest is not None]
        return max(found, key=lambda one: (one.ranks, one.channels, one.values, one.size), default=None)

    @property
    def cause(self) -> str:
        """The first cause named, on the first seed that names one."""
        return next((outcome.causes[0] for outcome in self.outcomes if outcome.causes), "")

    @property
    def internal(self) -> int:
        """Cases and units that our own machinery failed on."""
        return len(self.broken) + sum(outcome.internal for outcome in self.outcomes)


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    found = set(names)
    return tuple(name for name in PROPERTIES if name in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class RightRow:
    """What all units say of one right subject."""

    spec: str
    grade: str
    cases: int = 0
    accused: int = 0
    seconds: float = 0.0
    internal: int = 0
    cells: tuple[Cell, ...] = ()
    accusations: tuple[Accusation, ...] = ()

    @property
    def undecided_share(self) -> float:
        """Share of elements that could not be decided."""
        elements = sum(cell.elements for cell in self.cells)
        return sum(cell.undecided for cell in self.cells) / elements if elements else 0.0

    @property
    def max_ratio(self) -> float:
        """Greatest ratio."""
        return max((float(cell.max_ratio) for cell in self.cells), default=0.0)


@dataclass(slots=True)
class Score:
    """Collects what is done, and reads it off.

    Args:
        units: All that is to do.
        whole: Whether it is the whole catalogue, with time for minimising: the targets of diagnosis apply.
    """

    units: Sequence[Unit]
    whole: bool = True
    done: list[Done] = field(default_factory=list)

    def add(self, done: Done) -> None:
        """Take one unit that is done."""
        self.done.append(done)

    @property
    def seeds(self) -> int:
        """Number of seeds a fault."""
        return max((unit.seed for unit in self.units if isinstance(unit, FaultUnit)), default=0)

    def row(self, card: Card) -> Row:
        """Return what is known of one fault."""
        mine = [d for d in self.done if isinstance(d.unit, FaultUnit) and d.unit.card.id == card.id]
        outcomes = [d.outcome for d in mine if isinstance(d.outcome, FaultOutcome)]
        return Row(
            card,
            tuple(sorted(outcomes, key=lambda outcome: outcome.seed)),
            sum(isinstance(unit, FaultUnit) and unit.card.id == card.id for unit in self.units),
            tuple(d.outcome.reason for d in mine if isinstance(d.outcome, Broken)),
        )

    @property
    def rows(self) -> tuple[Row, ...]:
        """A row for each fault of which something is known, in the order of the catalogue."""
        cards = {unit.card.id: unit.card for unit in self.units if isinstance(unit, FaultUnit)}
        rows = (self.row(card) for card in cards.values())
        return tuple(row for row in rows if row.outcomes or row.broken)

    @property
    def right(self) -> tuple[RightRow, ...]:
        """A row for each right subject of which something is known."""
        cards = {unit.card.spec: unit.card for unit in self.units if isinstance(unit, RightUnit)}
        rows = (_right_row(card.spec, card.grade, self.done) for card in cards.values())
        return tuple(row for row in rows if row.cases or row.internal)

    @property
    def faults(self) -> int:
        """Number of faults that are to be judged."""
        return len({unit.card.id for unit in self.units if isinstance(unit, FaultUnit)})

    @property
    def finished(self) -> bool:
        """Whether everything was done."""
        return len(self.done) == len(self.units)

    @property
    def by_class(self) -> dict[int, int]:
        """Number of faults by class."""
        return dict(sorted(Counter(row.card.number for row in self.rows).items()))

    @property
    def not_small(self) -> tuple[str, ...]:
        """Faults that show with two ranks and one channel, and whose minimal case is larger on some seed."""
        return tuple(
            row.card.id for row in self.rows if row.card.small and row.minimal and not row.minimal.small
        )

    @property
    def named(self) -> Naming:
        """How well causes are named."""
        return naming(self.rows)

    @property
    def internal(self) -> int:
        """Cases and units that our own machinery failed on."""
        return sum(row.internal for row in self.rows) + sum(row.internal for row in self.right)

    @property
    def exit_code(self) -> int:
        """0 if every target is met, 1 if not, 70 if our own machinery failed."""
        named = self.named
        if any(row.lacking for row in self.rows) or any(row.accused for row in self.right):
            return errors.NOT_MET
        if self.whole and named.measured and not named.met:
            return errors.NOT_MET
        return errors.INTERNAL if self.internal else errors.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How well causes are named, over faults and the seeds on which they are looked for.

    Attributes:
        measured: Whether causes are looked for at all.
        nameable, rightly: Outcomes of nameable faults; of them, those whose true class was named.
        others, falsely: Outcomes of other faults; of them, those for which a cause was named.
    """

    measured: bool
    nameable: int
    rightly: int
    others: int
    falsely: int

    @property
    def rightly_share(self) -> float:
        """Share of nameable faults whose true class was named; 1 of none."""
        return self.rightly / self.nameable if self.nameable else 1.0

    @property
    def falsely_share(self) -> float:
        """Share of other faults for which a cause was named."""
        return self.falsely / self.others if self.others else 0.0

    @property
    def met(self) -> bool:
        """Whether both targets are met."""
        return self.rightly_share >= NAMED_TARGET and self.falsely_share <= FALSELY_TARGET


def naming(rows: Iterable[Row]) -> Naming:
    """Return how well causes are named in `rows`."""
    pairs = [(row.card, outcome) for row in rows for outcome in row.outcomes if outcome.diagnosed]
    nameable = [(card, outcome) for card, outcome in pairs if card.nameable]
    others = [outcome for card, outcome in pairs if not card.nameable]
    return Naming(
        measured=bool(pairs),
        nameable=len(nameable),
        rightly=sum(card.number in outcome.classes for card, outcome in nameable),
        others=len(others),
        falsely=sum(bool(outcome.causes) for outcome in others),
    )


def _right_row(spec: str, grade: str, done: Sequence[Done]) -> RightRow:
    mine = [d.outcome for d in done if isinstance(d.unit, RightUnit) and d.unit.card.spec == spec]
    outcomes = [outcome for outcome in mine if isinstance(outcome, RightOutcome)]
    return RightRow(
        spec=spec,
        grade=grade,
        cases=sum(outcome.cases for outcome in outcomes),
        accused=sum(outcome.accused for outcome in outcomes),
        seconds=sum(outcome.seconds for outcome in outcomes),
        internal=sum(outcome.internal for outcome in outcomes) + len(mine) - len(outcomes),
        cells=summed((outcome.cells for outcome in outcomes), by=("dtype", "property")),
        accusations=tuple(a for outcome in outcomes for a in outcome.accusations),
    )


def summed(cells: Iterable[Iterable[Cell]], *, by: tuple[str, ...]) -> tuple[Cell, ...]:
    """Return one cell for each combination of the attributes `by`, in the order of the catalogue."""
    found: dict[tuple[str, ...], Cell] = {}
    for cell in (cell for some in cells for cell in some):
        key = tuple(getattr(cell, name) for name in by)
        found[key] = found[key].plus(cell) if key in found else cell
    order = tuple(PROPERTIES)
    return tuple(sorted(found.values(), key=lambda cell: (cell.dtype, order.index(cell.property))))

"""The table that people read: a line a fault, then totals, then the right subjects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from verify.measure.power.outcome import Cell
from verify.measure.power.score import FALSELY_TARGET, NAMED_TARGET, RightRow, Row, Score, summed
from verify.report.words import count, listing, ratio

LATE = 150
"""Cases until the first failure above which a fault is listed as found late: half of the default budget."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The fixed widths of the table, so that its lines can be written one by one.

    Args:
        width: Of the longest id.
    """

    width: int

    @property
    def head(self) -> str:
        """The line of titles."""
        return (
            f"{'fault':<{self.width}}  class  caught  {'cases':>6} {'seconds':>8}  "
            f"{'minimal case*':<14}  violated properties; first named cause"
        )

    def line(self, row: Row) -> str:
        """Return the line of one fault."""
        cells = texts(row)
        return (
            f"{row.card.id:<{self.width}}  {row.card.number:>5}  {cells.caught:>6}  {cells.cases:>6} "
            f"{cells.seconds:>8}  {cells.minimal:<14}  {cells.properties}"
            + (f"; {cells.cause}" if cells.cause else "")
            + (f"; NOT violated: {cells.lacking}" if cells.lacking else "")
            + (f"; {count(row.internal, 'failure')} of our own machinery" if row.internal else "")
        )


FOOTNOTE = (
    "* ranks x channels x values a channel, and bytes of JSON, of seed 1. "
    "Cases and seconds until the first failure are medians over the seeds."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What the cells of one row say."""

    caught: str
    cases: str
    seconds: str
    minimal: str
    properties: str
    lacking: str
    cause: str


def texts(row: Row) -> Texts:
    """Return the texts of one row."""
    least = row.minimal
    return Texts(
        caught=f"{row.caught}/{row.wanted}",
        cases="-" if row.cases is None else f"{row.cases:g}",
        seconds="-" if row.seconds is None else f"{row.seconds:.2f}",
        minimal=f"{least.ranks}x{least.channels}x{least.values} {least.size} B" if least else "-",
        properties=", ".join(row.properties) or ("MISSED" if row.outcomes else "not judged"),
        lacking=", ".join(row.lacking) if row.properties else "",
        cause=row.cause,
    )


def totals(score: Score) -> Iterator[str]:
    """Yield the lines that sum up the faults."""
    rows = score.rows
    if not rows:
        return
    outcomes = [outcome for row in rows for outcome in row.outcomes]
    caught = sum(outcome.caught for outcome in outcomes)
    whole = sum(not outcome.lacking for outcome in outcomes)
    share = caught / len(outcomes) if outcomes else 0.0
    yield (
        f"{count(len(rows), 'fault')} of {score.faults}, {count(score.seeds, 'seed')}: caught "
        f"{caught}/{len(outcomes)} ({share:.1%}), with all the properties that must catch them {whole}"
    )
    if found := [row.seconds for row in rows if row.seconds is not None]:
        cases = [row.cases for row in rows if row.cases is not None]
        yield (
            f"until the first failure, median over the faults: {median(cases):g} cases, "
            f"{median(found):.2f} s; greatest: {max(cases):g} cases, {max(found):.2f} s"
        )
    if masked := [row for row in rows if row.card.masked]:
        yield (
            f"masked by known discrepancies of torch: {sum(row.complete for row in masked)} of "
            f"{count(len(masked), 'fault')} caught on every seed"
        )
    yield from _lists(score)
    yield _naming(score)
    yield "faults by class: " + ", ".join(f"{number}: {faults}" for number, faults in score.by_class.items())
    if missing := [number for number in range(1, 26) if number not in score.by_class]:
        yield f"classes without a fault: {', '.join(map(str, missing))}"


def _lists(score: Score) -> Iterator[str]:
    """Yield the lists of faults that need attention."""
    rows = score.rows
    judged = [row for row in rows if row.outcomes]
    lists = {
        "missed on a seed": [row.card.id for row in judged if row.caught < len(row.outcomes)],
        "caught, but not by all the properties that must": [
            row.card.id for row in judged if row.caught == len(row.outcomes) and row.lacking
        ],
        f"found late (above {LATE} cases on a seed)": [row.card.id for row in rows if row.latest > LATE],
        "not minimised to two ranks and one channel": list(score.not_small),
        "our own machinery failed": [row.card.id for row in rows if row.internal],
    }
    for words, ids in lists.items():
        if ids:
            yield f"{words}: {', '.join(ids)}"


def _naming(score: Score) -> str:
    named = score.named
    if not named.measured:
        return "diagnosis: this version names no causes"
    judged = "" if score.whole else " for the whole catalogue, without --quick"
    return (
        f"diagnosis: the true class named for {named.rightly}/{named.nameable} ({named.rightly_share:.1%}; "
        f"target {NAMED_TARGET:.0%}{judged}); a cause named for {named.falsely}/{named.others} "
        f"({named.falsely_share:.1%}; target at most {FALSELY_TARGET:.0%}) that no hypothesis covers"
    )


def right_lines(rows: Sequence[RightRow]) -> Iterator[str]:
    """Yield the lines on the right subjects: accusations, undecided shares, greatest ratios."""
    if not rows:
        return
    cases, accused = sum(row.cases for row in rows), sum(row.accused for row in rows)
    yield f"right subjects: {accused} of {count(cases, 'case')} accused"
    width = max(len(row.spec) for row in rows)
    for row in rows:
        yield (
            f"  {row.spec:<{width}}  grade {row.grade}  {row.cases:>6} cases  {row.accused:>3} accused  "
            f"{row.undecided_share:>7.3%} undecided  greatest ratio {ratio(row.max_ratio)}"
            + (f"; {count(row.internal, 'failure')} of our own machinery" if row.internal else "")
        )
    yield "  greatest ratio by grade, property and dtype:"
    for line in ratios(rows):
        yield "  " + "  ".join((f"{line[0]:<5}  {line[1]:<20}", *(f"{text:>9}" for text in line[2:])))
    for row in rows:
        for accusation in row.accusations:
            yield "\n" + accusation.text


def ratios(rows: Sequence[RightRow]) -> Iterator[tuple[str, ...]]:
    """Yield a line of titles, then for each grade and property the greatest ratio in each dtype.

    Properties that have no ratio are left out; the last line of a grade is the share of undecided elements.
    """
    dtypes = sorted({cell.dtype for row in rows for cell in row.cells})
    yield ("grade", "property", *dtypes)
    for grade in sorted({row.grade for row in rows}):
        cells = summed((row.cells for row in rows if row.grade == grade), by=("dtype", "property"))
        for name in dict.fromkeys(cell.property for cell in cells):
            mine = [cell for cell in cells if cell.property == name]
            if any(cell.max_ratio for cell in mine):
                found = {cell.dtype: ratio(float(cell.max_ratio)) for cell in mine if cell.max_ratio}
                yield (grade, name, *(found.get(dtype, "-") for dtype in dtypes))
        yield (grade, "undecided elements", *(_undecided(cells, dtype) for dtype in dtypes))


def _undecided(cells: Sequence[Cell], dtype: str) -> str:
    elements = sum(cell.elements for cell in cells if cell.dtype == dtype)
    undecided = sum(cell.undecided for cell in cells if cell.dtype == dtype)
    return f"{undecided / elements:.3%}" if elements else "-"


def conclusion(score: Score) -> str:
    """Return the last line: whether every target is met."""
    unmet = []
    if any(row.lacking for row in score.rows):
        unmet.append("not every fault is caught on every seed by the properties that must")
    if any(row.accused for row in score.right):
        unmet.append("a right subject is accused")
    if score.whole and score.named.measured and not score.named.met:
        unmet.append("the targets of diagnosis are missed")
    if score.internal:
        unmet.append("our own machinery failed")
    if not score.finished:
        unmet.append(f"{len(score.units) - len(score.done)} of {len(score.units)} units were not judged")
    return f"Not met: {listing(unmet)}." if unmet else "Every target is met."

"""The page `docs/faults.md`: the fault catalogue with what the suite makes of it, made by a command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from verify.faults.classes import class_name
from verify.measure.power.score import RightRow, Row, Score
from verify.measure.power.score_text import ratios, right_lines, texts, totals


def page(score: Score, *, command: str, environment: str) -> str:
    """Return the whole page.

    Args:
        score: What was found.
        command: The line that made it.
        environment: Versions and machine, in one line.
    """
    return "\n".join(_lines(score, command=command, environment=environment)).rstrip() + "\n"


def _lines(score: Score, *, command: str, environment: str) -> Iterator[str]:
    yield "# The fault catalogue"
    yield ""
    yield f"Made by `{command}`; do not edit."
    yield ""
    yield f"{environment}."
    yield ""
    yield "Each fault is the smallest change to a right subject; `verify/faults/` holds a family a file."
    yield "*Cases* and *seconds* until the first failure are medians over the seeds; the *minimal case*"
    yield "(ranks x channels x values a channel, bytes of JSON) and the causes are those of seed 1."
    yield ""
    yield "## Totals"
    yield ""
    for line in (*totals(score), *list(right_lines(score.right))[:1]):
        yield f"- {line[0].upper()}{line[1:]}."
    yield ""
    yield from _faults(score.rows)
    yield from _classes(score)
    if score.right:
        yield from _right(score.right)


def _faults(rows: Sequence[Row]) -> Iterator[str]:
    for family in dict.fromkeys(row.card.family for row in rows):
        yield f"## {family}"
        yield ""
        yield "| fault | class | what is wrong | caught | by | cases | seconds | minimal case | named cause |"
        yield "|---|--:|---|--:|---|--:|--:|---|---|"
        for row in rows:
            if row.card.family == family:
                yield _fault(row)
        yield ""


def _fault(row: Row) -> str:
    cells = texts(row)
    by = cells.properties + (f" (not: {cells.lacking})" if cells.lacking else "")
    what = f"{row.card.wrong} ({row.card.source})"
    parts = (
        f"`{row.card.id}`",
        str(row.card.number),
        what,
        cells.caught,
        by,
        cells.cases,
        cells.seconds,
        cells.minimal,
        cells.cause or "-",
    )
    return "| " + " | ".join(_escaped(part) for part in parts) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _classes(score: Score) -> Iterator[str]:
    yield "## Classes"
    yield ""
    yield "| class | is | faults |"
    yield "|--:|---|--:|"
    for number in sorted({*range(1, 26), *score.by_class}):
        yield f"| {number} | {class_name(number)} | {score.by_class.get(number, 0)} |"
    yield ""


def _right(rows: Sequence[RightRow]) -> Iterator[str]:
    yield "## Right subjects"
    yield ""
    yield "Written differently from one another; none may be accused."
    yield ""
    yield "| subject | grade | cases | accused | undecided elements | greatest ratio |"
    yield "|---|---|--:|--:|--:|--:|"
    for row in rows:
        yield (
            f"| `{row.spec}` | {row.grade} | {row.cases} | {row.accused} | {row.undecided_share:.3%} | "
            f"{row.max_ratio:.3f} |"
        )
    yield ""
    yield "Greatest ratio by grade, property and dtype; above 1 would be an accusation."
    yield ""
    titles, *lines = ratios(rows)
    yield "| " + " | ".join(titles) + " |"
    yield "|---|---|" + "--:|" * (len(titles) - 2)
    for line in lines:
        yield "| " + " | ".join(line) + " |"

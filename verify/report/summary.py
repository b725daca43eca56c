"""The summary of a subject, as lines of text: verdict, grades, counts, properties, known ones."""

from __future__ import annotations

from collections.abc import Iterator

from verify.result import Accounting, KnownResult, SubjectResult
from verify.wording import count, of_a_sample, ratio


def summary(result: SubjectResult) -> Iterator[str]:
    """Yield the lines of one result."""
    counts = result.accounting
    rate = counts.cases / result.seconds if result.seconds else 0.0
    control = " (a control: expected to be VIOLATED)" if result.expectation == "VIOLATED" else ""
    yield f"{result.label}: {verdict_words(result)}{control}"
    yield (
        f"  {count(counts.cases, 'case')} in {result.seconds:.1f} s ({rate:.1f}/s), "
        f"{counts.pairs} (case, property) pairs"
    )
    if result.stopped:
        yield f"  stopped before the end of the budget: {result.stopped}"
    yield f"  grade required {result.required}; satisfied: {grades(result) or 'nothing was judged by it'}"
    if advice := grade_advice(result):
        yield f"  {advice}"
    yield from _accounting(counts, excluded=result.excluded)
    yield from _properties(result)
    yield from known_lines(result.known)


def verdict_words(result: SubjectResult) -> str:
    """Return the verdict, with what qualifies it."""
    seen = [known for known in result.known if known.state == "seen" or known.skipped]
    if result.verdict == "HOLDS" and seen:
        return f"HOLDS apart from {count(len(seen), 'known discrepancy').replace('ys', 'ies')}"
    if result.verdict == "VIOLATED":
        told = {failure.property for failure in result.failures}
        names = [name for name, found in result.properties.items() if found.violated or name in told]
        return f"VIOLATED ({', '.join(names)})"
    return result.verdict


def grades(result: SubjectResult) -> str:
    """Return "float32 A, float16 A"."""
    return ", ".join(f"{dtype} {grade}" for dtype, grade in result.grade.items())


def grade_advice(result: SubjectResult) -> str:
    """Return how to declare a looser grade, if the subject breaks the required one and satisfies that."""
    found = {grade for grade in result.grade.values() if grade != result.required}
    if not found or "none" in found or result.verdict != "VIOLATED":
        return ""
    worst = max(found)
    return (
        f"it breaks grade {result.required} and satisfies grade {worst} on every case; "
        f"if it promises no more, "
        f'declare factory.syncbn_verify = {{"grade": "{worst}"}} or give --grade {worst}'
    )


def known_lines(known: tuple[KnownResult, ...]) -> Iterator[str]:
    """Yield one line a known discrepancy."""
    if known:
        yield "  known discrepancies:"
    for entry in known:
        numbers = f", excused {count(entry.excused, 'case')}" if entry.excused else ""
        skipped = f", {entry.skipped} more not run" if entry.skipped else ""
        link = f" ({entry.link})" if entry.link else ""
        yield f"    {entry.id}: {entry.state}{numbers}{skipped}. {entry.reason}{link}"


def _accounting(counts: Accounting, *, excluded: float) -> Iterator[str]:
    yield (
        f"  undecided {counts.undecided_share:.2%} and blind {counts.blind_share:.2%} of "
        f"{counts.elements} elements; "
        f"in {counts.coarse_share:.2%} of pairs more than a tenth of the elements"
    )
    if counts.unjudged:
        yield f"  {of_a_sample(counts.unjudged)}"
    yield (
        f"  the domain excludes {excluded:.1%} of the default one; "
        f"{counts.skipped} drawn cases skipped as known; "
        f"{count(counts.hung, 'case')} hung, {counts.died} died; "
        f"{count(counts.internal, 'failure')} of our own machinery"
    )


def _properties(result: SubjectResult) -> Iterator[str]:
    if not result.properties:
        return
    yield f"  {'property':<20} {'holds':>7} {'violated':>9} {'undecided':>10} {'excused':>8}   greatest ratio"
    for name, found in result.properties.items():
        shown = ratio(found.max_ratio) if found.max_ratio else "-"
        numbers = f"{found.holds:>7} {found.violated:>9} {found.undecided:>10} {found.excused:>8}"
        yield f"  {name:<20} {numbers}   {shown}"

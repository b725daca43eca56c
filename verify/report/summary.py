"""The summary of a subject, as lines of text: verdict, what it stands on, grades, counts, known ones."""

from __future__ import annotations

from collections.abc import Iterator

from verify.report.pace import pace_lines
from verify.report.words import count, listing, ratio
from verify.result import Accounting, KnownResult, StandsOn, SubjectResult


def summary(result: SubjectResult, *, everything: bool = False) -> Iterator[str]:
    """Yield the lines of one result.

    Args:
        result: The result.
        everything: With the counts of every property, and every known discrepancy.
    """
    control = " (a control: expected to be VIOLATED)" if result.expectation == "VIOLATED" else ""
    yield f"{result.label}: {verdict_words(result)}{control}"
    if result.lacking:
        yield f"  undecided: {result.lacking}"
    yield _judged(result)
    if result.stopped:
        yield f"  stopped before the end of the budget: {result.stopped}"
    yield f"  grade required {result.required}; satisfied: {grades(result) or 'nothing was judged by it'}"
    if advice := grade_advice(result):
        yield f"  {advice}"
    yield from _accounting(result.accounting, excluded=result.excluded, everything=everything)
    yield from pace_lines(result.pace)
    if everything:
        yield from _properties(result)
        yield from known_lines(result.known)
    else:
        yield from known_counts(result.known)


def verdict_words(result: SubjectResult) -> str:
    """Return the verdict, with what qualifies it."""
    seen = [known for known in result.known if known.state == "seen" or known.skipped]
    if result.verdict == "HOLDS" and seen:
        return f"HOLDS apart from {known_count(len(seen))}"
    if result.verdict == "VIOLATED":
        told = {failure.property for failure in result.failures}
        names = [name for name, found in result.properties.items() if found.violated or name in told]
        return f"VIOLATED ({', '.join(names)})"
    return result.verdict


def known_count(number: int) -> str:
    """Return "1 known discrepancy" or "2 known discrepancies"."""
    return f"{number} known {'discrepancy' if number == 1 else 'discrepancies'}"


def sizes_words(stands: StandsOn) -> str:
    """Return the numbers of ranks that were judged, as "1 to 4" or "1, 2 and 8"."""
    sizes = sorted(map(int, stands.world_sizes))
    if len(sizes) > 2 and sizes == list(range(sizes[0], sizes[-1] + 1)):
        return f"{sizes[0]} to {sizes[-1]}"
    return listing(sizes) if sizes else "-"


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


def known_counts(known: tuple[KnownResult, ...]) -> Iterator[str]:
    """Yield a line on how many known discrepancies are in which state, and one on those gone stale."""
    if not known:
        return
    states = [state for state in ("seen", "not exercised", "stale") if any(k.state == state for k in known)]
    numbers = [f"{sum(k.state == state for k in known)} {state}" for state in states]
    yield f"  {known_count(len(known))}: {listing(numbers)}; --known lists them"
    if stale := [entry.id for entry in known if entry.state == "stale"]:
        yield f"  gone stale, to be removed: {listing(stale)}"


def known_lines(known: tuple[KnownResult, ...]) -> Iterator[str]:
    """Yield one line a known discrepancy."""
    if known:
        yield "  known discrepancies:"
    for entry in known:
        numbers = f", excused {count(entry.excused, 'case')}" if entry.excused else ""
        skipped = f", {entry.skipped} more not run" if entry.skipped else ""
        link = f" ({entry.link})" if entry.link else ""
        yield f"    {entry.id}: {entry.state}{numbers}{skipped}. {entry.reason}{link}"


def _judged(result: SubjectResult) -> str:
    """Return what was judged, and what of it the verdict stands on."""
    counts, stands = result.accounting, result.stands_on
    rate = counts.cases / result.seconds if result.seconds else 0.0
    decided = "" if stands.cases == counts.cases else f", {stands.cases} of them decided"
    return (
        f"  {count(counts.cases, 'case')} in {result.seconds:.1f} s ({rate:.1f}/s){decided}: "
        f"on {sizes_words(stands)} ranks, {stands.synchronised} with two ranks or more in a process group; "
        f"{len(stands.properties)} properties"
    )


def _accounting(counts: Accounting, *, excluded: float, everything: bool) -> Iterator[str]:
    undecided, blind = f"{counts.undecided_share:.2%}", f"{counts.blind_share:.2%}"
    yield (
        f"  of {counts.elements} elements compared, {undecided} could not be decided (rounding has no "
        f"bound, as after overflow) and {blind} are blind (smaller than rounding may be)"
    )
    if everything:
        yield (
            f"  {counts.pairs} times a property was judged on a case; {counts.coarse_share:.2%} of them had "
            "more than a tenth of their elements undecided or blind"
        )
    yield (
        f"  the domain excludes {excluded:.1%} of the default one; "
        f"{counts.skipped} drawn cases skipped as known; "
        f"{count(counts.hung, 'case')} hung, {counts.died} died"
        f"{f', {counts.slow} given up as too slow' if counts.slow else ''}; "
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

"""The table of sensitivities: targets, Markdown, and lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from verify.measure.sensitivity.smallest_caught import QUANTITIES, Cell

_PRECISE = ("float64", "float32")
_HALF = ("float16", "bfloat16")
_SMALL = {
    "output": 5,
    "running_mean": 5,
    "running_var": 6,
    "grad_weight": 6,
    "grad_bias": 6,
    "grad_input": 7,
}
TARGETS: dict[tuple[str, str, str], int] = {
    **{(dtype, "n <= 8", name): most for dtype in _PRECISE for name, most in _SMALL.items()},
    **{(dtype, "near 1024", name): 8 if name == "output" else 12 for dtype in _PRECISE for name in _SMALL},
    **{(dtype, stratum, "output"): 2 for dtype in _HALF for stratum in ("n <= 8", "9 to 64")},
}
"""Largest k that the suite may need, by dtype, stratum and quantity."""

_INTRODUCTION = """# Sensitivity

How small an error is caught. A right subject (`verify.faults.perturbed`) has one quantity moved by a
relative 2^k u, and the table gives the smallest k that is caught on every one of {seeds} seeds: "5" means
that an error of 32 u, 2e-6 in float32, is caught. Made by

    python -m verify faults --sensitivity --seeds {seeds} --cases {cases} --table docs/sensitivity.md

Each entry is **k (half)**, first of this suite at grade A, then of `torch.testing.assert_close` with its
default tolerances, on the same {cases} cases a seed, dtype and stratum. **k**: the smallest that is caught in
at least one of the cases of each seed, confirmed by runs on real ranks. **half**: the smallest that is caught
in half of the cases, predicted from the ratios of a run with a large amount. "-": not even a relative half.

- u is the unit roundoff of the dtype; for mean, variance and inverse deviation of half inputs, that of
  float32, in which they are computed. 2^0 u is the rounding of a single operation.
- Mean, variance and inverse deviation are moved before anything uses them, the rest before it is stored.
- The strata are numbers of values a channel over all ranks; the cases are those of the ordinary generator
  that lie in the stratum, as one training step on two ranks with parameters of the input's dtype.
- k counts the easiest case of a seed: an output that is its bias, since the weight is 0, hardly rounds, nor
  does a buffer with momentum 0. The half says what an ordinary case does.
- assert_close has the reference rounded to the dtype, so without rounding errors of its own. Where it rejects
  the right subject itself (see below) the case is left out of its columns: its noticing means nothing there.
- Gradients of the input count from three values a channel on: with two they are zero but for rounding.
- The targets are for k. In float64 the reference has no more precision than the subject: its own rounding
  errors, u in every operation and n u in a sum, are part of the bound.
"""


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured: the number of seeds, of cases a seed, and all cells."""

    seeds: int
    cases: int
    cells: tuple[Cell, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """One clause for each target that is not met."""
        found = []
        for one in self.cells:
            most = TARGETS.get((one.dtype, one.stratum, one.quantity))
            if one.suite and most is not None and (one.smallest is None or one.smallest > most):
                moved = "a single element" if one.single else "all elements"
                text = f"k={_text(one.smallest)}, target {most}"
                found.append(f"{one.quantity} {one.dtype}, {one.stratum}, {moved}: {text}")
        return tuple(found)

    @property
    def strata(self) -> tuple[str, ...]:
        """The strata that were measured."""
        return tuple(dict.fromkeys(one.stratum for one in self.cells))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that were measured."""
        return tuple(dict.fromkeys(one.dtype for one in self.cells))

    def find(self, dtype: str, stratum: str, quantity: str, *, single: bool, suite: bool) -> Cell | None:
        """Return the cell with these properties, if it was measured."""
        wanted = (dtype, stratum, quantity, single, suite)
        return next(
            (
                one
                for one in self.cells
                if (one.dtype, one.stratum, one.quantity, one.single, one.suite) == wanted
            ),
            None,
        )


def page(found: Sensitivity) -> str:
    """Return the page of documentation, Markdown."""
    return "\n".join([_INTRODUCTION.format(seeds=found.seeds, cases=found.cases), *_sections(found), ""])


def lines(found: Sensitivity) -> Iterator[str]:
    """Yield what the terminal shows: the tables without the introduction."""
    yield f"k (half) of this suite | of assert_close; {found.seeds} seeds, {found.cases} cases each"
    yield from _sections(found)


def _sections(found: Sensitivity) -> Iterator[str]:
    for single, title in (
        (False, "All elements"),
        (True, "The single element with the smallest bound / |value|"),
    ):
        for dtype in found.dtypes:
            yield f"\n## {title}, {dtype}\n"
            yield from _table(found, dtype, single=single)
    yield "\n## Right subjects that assert_close rejects\n"
    yield from _rejected(found)
    yield "\n## Targets\n"
    yield from _targets(found)
    yield ""
    yield from (f"- missed: {clause}" for clause in found.missed)
    if not found.missed:
        yield "All met."


def _table(found: Sensitivity, dtype: str, *, single: bool) -> Iterator[str]:
    yield "| moved | " + " | ".join(f"{name}: suite | assert_close" for name in found.strata) + " |"
    yield "|---" * (1 + 2 * len(found.strata)) + "|"
    for quantity in QUANTITIES:
        entries = []
        for stratum in found.strata:
            for suite in (True, False):
                one = found.find(dtype, stratum, quantity, single=single, suite=suite)
                entries.append("" if one is None else f"{_text(one.smallest)} ({_text(one.half)})")
        yield f"| {quantity} | " + " | ".join(entries) + " |"


def _rejected(found: Sensitivity) -> Iterator[str]:
    """Yield the share of cases in which assert_close rejects the right subject."""
    yield "| dtype | " + " | ".join(found.strata) + " |"
    yield "|---" * (1 + len(found.strata)) + "|"
    for dtype in found.dtypes:
        entries = []
        for stratum in found.strata:
            one = found.find(dtype, stratum, "mean", single=False, suite=False)
            entries.append("" if one is None else f"{1 - one.telling / max(1, one.cases):.0%}")
        yield f"| {dtype} | " + " | ".join(entries) + " |"


def _targets(found: Sensitivity) -> Iterator[str]:
    """Yield each target beside what all elements of the quantity were found to need."""
    yield "| stratum | moved | dtype | target | k (half) |"
    yield "|---|---|---|---:|---:|"
    for (dtype, stratum, quantity), most in TARGETS.items():
        one = found.find(dtype, stratum, quantity, single=False, suite=True)
        if one is not None:
            yield f"| {stratum} | {quantity} | {dtype} | {most} | {_text(one.smallest)} ({_text(one.half)}) |"


def _text(exponent: int | None) -> str:
    return "-" if exponent is None else str(exponent)

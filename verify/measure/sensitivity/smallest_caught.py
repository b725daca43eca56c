"""The smallest amount by which a right subject can be moved and be caught, in the cases of one seed.

Theory of operation
-------------------
Every case runs on real ranks with the subject of `verify.faults.perturbed`, and is judged by the ordinary
judge. A run with a large amount (2^-4 of what is stored, 2^16 u of the rest) gives the ratio of every
element; as ratios grow in proportion to the amount, they say for each case the smallest amount that is
caught. The cases in which it is smallest are then run with that amount, its halves and its doubles, until the
smallest that is really caught is known. So "caught" is always a run and a verdict; that no other case is
caught by less is the prediction's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.domain import Contract
from properties.expectation.expect import expect
from properties.judge.catalogue import judge
from properties.observation import Observation
from properties.verdict import Outcome
from reference.rounding import FACTS
from verify.measure.sensitivity.element_vector import Elements
from verify.ranks.pool import RankPool

Floats = NDArray[np.float64]

STORED = ("output", "grad_input", "grad_weight", "grad_bias", "running_mean", "running_var")
INNER = ("mean", "var", "invstd")
QUANTITIES = INNER + STORED
_LARGE = 2.0**-4
_LARGE_EXPONENT = 16
_LARGEST = 2.0**-1
_CANDIDATES = 2


class Aim(NamedTuple):
    """What is moved, all its elements or a single one, and who is to notice: the suite, or assert_close."""

    quantity: str
    single: bool = False
    suite: bool = True


AIMS = tuple(
    Aim(quantity, single, suite)
    for quantity in QUANTITIES
    for single in (False, True)
    for suite in (True, False)
)


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """What was found for one aim in one stratum and dtype.

    Attributes:
        exponents: Smallest exponent noticed, by seed; None where none up to a relative half is.
        half: Exponent from which half of the cases notice, by prediction; None if half never do.
        telling: Cases that say anything of the aim.
        cases: All cases.
    """

    stratum: str
    dtype: str
    quantity: str
    single: bool
    suite: bool
    exponents: tuple[int | None, ...]
    half: int | None
    telling: int
    cases: int

    @property
    def smallest(self) -> int | None:
        """The smallest exponent that is noticed on every seed."""
        known = [one for one in self.exponents if one is not None]
        return max(known) if known and len(known) == len(self.exponents) else None


class MeasureError(RuntimeError):
    """The right subject was accused, or a rank did not return: nothing can be measured."""


def unit(quantity: str, dtype: str) -> float:
    """Return u: of the accumulation dtype for what is never stored, else of the dtype it is stored in."""
    accumulated = "float32" if dtype in ("float16", "bfloat16") else dtype
    return FACTS[accumulated if quantity in INNER else dtype].u


def large(quantity: str, dtype: str) -> float:
    """Return the amount that predictions are made from, in units of u."""
    return 2.0**_LARGE_EXPONENT if quantity in INNER else _LARGE / unit(quantity, dtype)


@dataclass
class Subject:
    """The perturbed subject on a pool of ranks, told by a file in `folder`."""

    pool: RankPool
    folder: Path

    def run(
        self, case: Case, amounts: dict[str, float], *, rank: int = -1, index: int | None = None
    ) -> Observation:
        """Return what the ranks give back for `case` with `amounts` moved.

        Raises:
            MeasureError: If a rank did not return.
        """
        file = self.folder / "instruction.json"
        file.write_bytes(msgspec.json.encode({"amounts": amounts, "rank": rank, "index": index}))
        name = "told_by_" + str(file).encode().hex()
        seen = self.pool.run(f"verify.faults.perturbed:{name}", case)
        endings = [one.ending for one in seen.ranks]
        if any(ending != "returned" for ending in endings):
            raise MeasureError(f"Expected every rank to return, but got {endings} in {case!r}.")
        return seen


class Measured:
    """One case: what it expects, what the right subject gives, and how much may be moved unnoticed.

    Attributes:
        close: assert_close accepts the right subject, too; where it does not, its noticing means nothing.

    Raises:
        MeasureError: If the right subject is accused.
    """

    def __init__(self, case: Case, subject: Subject) -> None:
        self.case, self._subject = case, subject
        self._expected = expect(case, Contract(), "A")
        self._elements = Elements(self._expected, case.dtype)
        self._noticed: dict[tuple[str, int, int | None, int], tuple[bool, bool]] = {}
        self._places: dict[str, tuple[int, int | None]] = {}
        self._ratios: dict[Aim, float] = {}
        right = subject.run(case, {})
        self.close = bool((self._elements.beyond_tolerance(right) <= 1).all())
        if self._accused(right):
            raise MeasureError(f"Expected the right subject to hold, but it is accused in {case!r}.")
        self._foresee()

    def predicted(self, aim: Aim) -> float:
        """Return the exponent from which `aim` is noticed, as the run with a large amount says."""
        ratio = self._ratios[aim]
        if ratio == 0:
            return math.inf
        return math.log2(large(aim.quantity, self.case.dtype)) - math.log2(min(ratio, 2.0**100))

    def tells(self, aim: Aim) -> bool:
        """Return whether the case says anything of `aim`.

        It does not without the quantity, and not where assert_close rejects the right subject. Two values
        a channel have no gradient of the input: what is left of it is rounding.
        """
        if aim.quantity == "grad_input" and self.case.total_of(tuple(range(self.case.world_size))) < 3:
            return False
        held = aim.quantity in INNER or bool(self._elements.of(aim.quantity).any())
        return held and (aim.suite or self.close)

    def noticed(self, aim: Aim, exponent: int) -> bool:
        """Return whether moving by 2^exponent u is noticed, in a run of its own."""
        rank, index = self._places[aim.quantity] if aim.single else (-1, None)
        key = (aim.quantity, rank, index, exponent)
        if key not in self._noticed:
            amount = math.ldexp(unit(aim.quantity, self.case.dtype), exponent)
            seen = self._subject.run(self.case, {aim.quantity: amount}, rank=rank, index=index)
            far = bool((self._elements.beyond_tolerance(seen) > 1).any())
            self._noticed[key] = (self._accused(seen), far)
        return self._noticed[key][0 if aim.suite else 1]

    def _accused(self, seen: Observation) -> bool:
        verdicts = judge(self.case, seen, self._expected, Contract())
        return any(verdict.outcome is Outcome.VIOLATED for verdict in verdicts)

    def _foresee(self) -> None:
        """Move all that is stored at once, since nothing stored acts on another, then each of the rest."""
        elements = self._elements
        seen = self._subject.run(self.case, dict.fromkeys(STORED, _LARGE))
        ratios = elements.beyond_bound(seen), elements.beyond_tolerance(seen)
        for quantity in STORED:
            own, position = elements.of(quantity), elements.steepest(quantity)
            self._places[quantity] = (-1, None) if position is None else elements.place(position)
            if quantity.startswith("running"):
                self._places[quantity] = (-1, self._places[quantity][1])
            single = np.zeros_like(own)
            if position is not None:
                single[position] = True
            self._note(quantity, ratios, own, single)
        for quantity in INNER:
            seen = self._subject.run(
                self.case, {quantity: 2.0**_LARGE_EXPONENT * unit(quantity, self.case.dtype)}
            )
            ratios = elements.beyond_bound(seen), elements.beyond_tolerance(seen)
            channel = elements.channel_of(int(ratios[0].argmax()))
            self._places[quantity] = (-1, channel)
            everywhere = np.ones(ratios[0].shape, np.bool_)
            self._note(quantity, ratios, everywhere, elements.channel(channel))

    def _note(
        self,
        quantity: str,
        ratios: tuple[Floats, Floats],
        everywhere: NDArray[np.bool_],
        single: NDArray[np.bool_],
    ) -> None:
        for which, where in ((False, everywhere), (True, single)):
            for suite, ratio in zip((True, False), ratios, strict=True):
                self._ratios[Aim(quantity, which, suite)] = float(ratio[where].max(initial=0.0))


def smallest(cases: Sequence[Measured], aim: Aim) -> int | None:
    """Return the smallest exponent that is noticed in any of `cases`; None if none up to a relative half is.

    Only the cases with the smallest predictions are run.
    """
    telling = [case for case in cases if case.tells(aim)]
    ordered = sorted(telling, key=lambda case: case.predicted(aim))[:_CANDIDATES]
    if not ordered or math.isinf(ordered[0].predicted(aim)):
        return None
    exponent = max(0, math.ceil(ordered[0].predicted(aim)))
    limit = round(math.log2(_LARGEST / unit(aim.quantity, ordered[0].case.dtype)))
    while exponent <= limit and not any(case.noticed(aim, exponent) for case in ordered):
        exponent += 1
    if exponent > limit:
        return None
    while exponent > 0 and any(case.noticed(aim, exponent - 1) for case in ordered):
        exponent -= 1
    return exponent


def cell(by_seed: Sequence[Sequence[Measured]], aim: Aim, *, stratum: str, dtype: str) -> Cell:
    """Return what the cases of all seeds say of `aim`."""
    every = [case for cases in by_seed for case in cases]
    predictions = sorted(case.predicted(aim) for case in every if case.tells(aim))
    middle = predictions[len(predictions) // 2] if predictions else math.inf
    return Cell(
        stratum=stratum,
        dtype=dtype,
        quantity=aim.quantity,
        single=aim.single,
        suite=aim.suite,
        exponents=tuple(smallest(cases, aim) for cases in by_seed),
        half=None if math.isinf(middle) else max(0, math.ceil(middle)),
        telling=len(predictions),
        cases=len(every),
    )

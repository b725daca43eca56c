"""The search for slips: lines of a batch norm that are written as what was observed says.

Rules
-----
- A slip must give what every trial observed of its part, within the bounds of a right subject, also where
  that is wrong; some of it must be so wrong that a right subject would not give it within the same bounds. No
  slip explains a tensor that is absent.
- Of several the one comes first that explains more of the parts after it, then the one that comes much
  nearer to what was observed, then the one that is first in its table.
- Where many slips explain the same the trials tell none of them from the others, and none is told: what is
  common to them is, if they have a family.
- Trials with an empty rank, or with values that overflow, are asked only where there are hardly others: there
  those who write the same slip differ in what else they do.
- Bounds are those of a right subject. What a wrong one computes may be greater, and rounds so much more.
- A part that no slip explains leaves what comes after it unexplained, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.diagnosis.causes.cause import PROPERTIES_OF, Part
from properties.diagnosis.plain_batchnorm import Modes
from properties.diagnosis.plain_schedule import Inputs, Tensors, expressible, follow, inputs_of
from properties.diagnosis.slips import (
    AFFINE_SLIPS,
    BACKWARD_SLIPS,
    BUFFER_SLIPS,
    FORWARD_SLIPS,
    SCOPES,
    SUFFIXES,
    Slip,
)
from properties.domain import Contract
from properties.expectation.expected import Expected
from properties.judge.bounded import Matching, Pair, match
from properties.observation import Observation
from reference.rounding import FACTS

Floats = NDArray[np.float64]
_QUANTITY = {"forward": "output"}
_MOST, _MOST_TELLING = 0.98, 0.9
"""Shares of all elements, and of those that are wrong, that must be within their bound: what is rounded twice
is now and then off by one more."""
_SLACK = 1.1
"""Of a bound: a slip is computed in float64, and what is rounded to the other side is off by a hair more."""
_WORST = 8.0
"""Bounds within which all must be."""
_MUCH = 2.0
"""Decimal orders of what is left by which one slip is likelier than another."""
_NOTHING = 1e-12
_MOST_ALIKE = 3
"""Kinds of slips that may explain the same equally well."""
_ROUNDINGS = 64.0
"""Of the accumulation dtype, of the greatest value of a channel."""
_ENOUGH = 3
"""Plain trials among which no others are asked."""
PARTS: tuple[Part, ...] = ("forward", "buffers", "backward", "affine")


class Seen(Protocol):
    """The part of `properties.diagnosis.diagnose.Evidence` that is needed here."""

    @property
    def case(self) -> Case: ...  # noqa: D102

    @property
    def observation(self) -> Observation: ...  # noqa: D102

    @property
    def violated(self) -> tuple[str, ...]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Scoped:
    """A slip in all steps, or only in those of some modes (`SCOPES`)."""

    slip: Slip
    scope: str = ""

    def applied(self, base: Modes) -> Modes:
        """Return `base` with the slip."""
        return Modes(
            *(
                self.slip.lines(lines) if mode in SCOPES[self.scope] else lines
                for mode, lines in zip(Modes._fields, base, strict=True)
            )
        )


@dataclass(slots=True)
class SlipSearch:
    """A search among trials of one subject.

    Attributes:
        evidence: Trials, each of which violates something.
        right: What a right subject gives, by case.
        contract: Which convention is right.
        until: Time, of `clock`, after which no further slip is asked.
    """

    evidence: Sequence[Seen]
    right: dict[Case, Expected]
    contract: Contract
    until: float
    clock: Callable[[], float]
    _matchings: dict[tuple[Case, str], Matching] = field(default_factory=dict)
    _inputs: dict[Case, Inputs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        usable = [one for one in self.evidence if one.case in self.right and expressible(one.case)]
        plain = [one for one in usable if _is_plain(one.case)]
        chosen = plain if len(plain) >= _ENOUGH else usable
        self.evidence = sorted(chosen, key=lambda one: one.case.elements)

    def parts(self) -> Iterator[tuple[Part, tuple[Scoped, ...]]]:
        """Yield each part that is violated with the slips that explain it, until none does."""
        base, told = Modes(), tuple[Scoped, ...]()
        if self._violated("forward"):
            told = self._surviving("forward", FORWARD_SLIPS, base)
            if not told and self._evaluates:
                found = self._surviving("forward", BUFFER_SLIPS, base)
                told = tuple(one for one in found if self._fits("buffers", one.applied(base)))
            if not told:
                return
            yield "forward", told
            base = told[0].applied(base)
        if self._violated("buffers"):
            if not self._fits("buffers", base):
                # Statistics that only the buffers show are hidden by the rounding of the outputs.
                slips = BUFFER_SLIPS if told else (*BUFFER_SLIPS, *FORWARD_SLIPS)
                told = tuple(
                    one for one in self._surviving("buffers", slips, base) if self._fits_forward(one, base)
                )
                if not told:
                    return
                base = told[0].applied(base)
            yield "buffers", told
        if self._violated("backward"):
            if not (told and self._fits("backward", base)):
                told = self._surviving("backward", BACKWARD_SLIPS, base)
                if not told:
                    return
                base = told[0].applied(base)
            yield "backward", told
        if self._violated("affine"):
            if not (told and self._fits("affine", base)):
                told = self._surviving("affine", AFFINE_SLIPS, base)
            if told:
                yield "affine", told

    @property
    def _evaluates(self) -> bool:
        return any(step.mode == "eval" for one in self.evidence for step in one.case.steps)

    @property
    def _modes(self) -> set[str]:
        """The modes of all steps."""
        return {
            "train" if step.mode == "train" else "running" if one.case.tracking else "own"
            for one in self.evidence
            for step in one.case.steps
        }

    def _violated(self, part: Part) -> bool:
        return any(set(one.violated) & set(PROPERTIES_OF[part]) for one in self.evidence)

    def _surviving(self, part: Part, slips: Sequence[Slip], base: Modes) -> tuple[Scoped, ...]:
        """Return the slips that explain the part, the likeliest first."""
        found: list[tuple[Scoped, float]] = []
        for one in slips:
            if self.clock() > self.until:
                break
            for scoped in self._scopes(one):
                left = self._left(part, scoped.applied(base))
                if left is not None and not np.isnan(left):
                    found.append((scoped, left))
                    break
        if len(found) < 2:
            return tuple(one for one, _ in found)
        later = [name for name in PARTS[PARTS.index(part) + 1 :] if self._violated(name)]

        def likely(pair: tuple[Scoped, float]) -> tuple[int, int]:
            one, left = pair
            explained = sum(self._fits(name, one.applied(base)) for name in later)
            return -explained, round(np.log10(max(left, _NOTHING)) / _MUCH)

        ranked = sorted(found, key=likely)
        best = [one for one, left in ranked if likely((one, left)) == likely(ranked[0])]
        if len({one.slip.kind for one in best}) > _MOST_ALIKE:
            families = {one.slip.family for one in best}
            alike = len(families) == 1 and families != {("", "")}
            return (replace(best[0], slip=best[0].slip.as_family()),) if alike else ()
        return tuple(one for one, _ in ranked)

    def _scopes(self, one: Slip) -> Iterator[Scoped]:
        """Yield the slip in all modes, and in some alone where the evidence has others."""
        yield Scoped(one)
        if one.part == "buffers":
            return
        for scope, modes in SCOPES.items():
            if scope and self._modes & modes and self._modes - modes:
                yield Scoped(one, scope)

    def _fits_forward(self, one: Scoped, base: Modes) -> bool:
        return one.slip.part == "buffers" or self._fits("forward", one.applied(base))

    def _fits(self, part: Part, modes: Modes) -> bool:
        return self._left(part, modes) is not None

    def _left(self, part: Part, modes: Modes) -> float | None:
        """Return the mean share of the error of `part` that a subject with these modes leaves unexplained.

        None if it does not give what some trial observed; NaN if nothing observed tells it from a right one.
        """
        shares = []
        for one in self.evidence:
            given = follow(one.case, self.contract, modes, self._inputs_of(one.case))
            for name in PROPERTIES_OF[part]:
                matching = self._matched(one, _QUANTITY.get(name, name))
                if matching.discrepancies:
                    return None
                for pair in matching.pairs:
                    left = _left(pair, given)
                    if left is None:
                        return None
                    shares.append(left)
        known = [share for share in shares if not np.isnan(share)]
        return float(np.mean(known)) if known else np.nan if shares else None

    def _inputs_of(self, case: Case) -> Inputs:
        if case not in self._inputs:
            self._inputs[case] = inputs_of(case)
        return self._inputs[case]

    def _matched(self, one: Seen, quantity: str) -> Matching:
        key = (one.case, quantity)
        if key not in self._matchings:
            expected = self.right[one.case]
            self._matchings[key] = match(
                quantity, case=one.case, observation=one.observation, expected=expected
            )
        return self._matchings[key]


def _is_plain(case: Case) -> bool:
    """Whether all who write the same slip give the same: no rank is empty, and nothing may overflow."""
    extreme = ("near_overflow", "subnormal")
    return (
        case.values not in extreme
        and case.last_values not in extreme
        and all(sized.count_of(rank) > 0 for sized in case.by_step for rank in range(case.world_size))
    )


def finite_alike(one: Scoped, seen: Seen, contract: Contract) -> bool:
    """Whether a subject with the slip gives finite values exactly where finite ones were observed."""
    given = follow(seen.case, contract, one.applied(Modes()))
    return all(
        (name, rank.rank) in given
        and np.array_equal(np.isfinite(given[name, rank.rank]), np.isfinite(tensor.values))
        for rank in seen.observation.ranks
        for name, tensor in rank.tensors.items()
        if name.startswith(("output.", "running_"))
    )


def named(found: Sequence[Scoped]) -> tuple[str, ...]:
    """Return the ids of slips; that of their kind in place of several of a kind."""
    kinds = [(one.slip.kind, one.scope) for one in found]
    names = (
        (one.slip.kind if kinds.count(kind) > 1 else one.slip.id) + SUFFIXES[one.scope]
        for one, kind in zip(found, kinds, strict=True)
    )
    return tuple(dict.fromkeys(names))


def _left(pair: Pair, given: Tensors) -> float | None:
    """Return the share of one tensor's squared error that `given` leaves; NaN where nothing tells.

    None if it does not have what was observed.
    """
    if (pair.name, pair.rank) not in given:
        return np.nan if pair.interval.optional else None
    value, observed = given[pair.name, pair.rank], pair.tensor.values
    if value.shape != observed.shape:
        return None
    right, bound = pair.interval.value, pair.interval.bound
    decided = np.isfinite(bound) & np.isfinite(right)
    if not decided.any():
        return np.nan
    value, observed, right, bound, near = (
        array[decided]
        for array in (value, observed, right, bound, _reach(value, right, bound, pair.interval.dtype))
    )
    with np.errstate(all="ignore"):
        off = np.abs(observed - value)
        off[np.isnan(observed) & ~np.isfinite(value)] = 0.0
        off[np.isinf(observed) & (observed == value)] = 0.0
        within = off <= near
        before = np.abs(observed - right)
        telling = ~(before <= near)
        if within.mean() < _MOST or not (off <= _WORST * near).all():
            return None
        if telling.any() and within[telling].mean() < _MOST_TELLING:
            return None
        known = telling & np.isfinite(before)
        if not known.any():
            return 0.0 if telling.any() else np.nan
        return float((off[known] ** 2).sum() / (before[known] ** 2).sum())


def _reach(value: Floats, right: Floats, bound: Floats, dtype: str) -> Floats:
    """Return how far from `value` rounding may carry what is observed.

    It is the bound of a right element, as much greater as the values of its channel are, or what storing
    makes of the value, and some roundings of the accumulation dtype on the greatest value of the channel.
    """
    u = FACTS[dtype].u
    most, usual = _greatest(value), _greatest(right)
    with np.errstate(all="ignore"):
        grown = np.where(usual > 0, most / np.maximum(usual, np.finfo(np.float64).tiny), 1.0)
        stored = u * np.abs(np.where(np.isfinite(value), value, 0.0))
        computed = _ROUNDINGS * min(u, FACTS["float32"].u) * most
        return np.asarray(_SLACK * np.maximum(np.maximum(grown, 1.0) * bound, stored) + computed)


def _greatest(array: Floats) -> Floats:
    """Return the greatest magnitude of each channel, in a shape that broadcasts."""
    finite = np.where(np.isfinite(array), np.abs(array), 0.0)
    axes = tuple(axis for axis in range(finite.ndim) if axis != 1)
    return np.asarray(finite.max(axis=axes, keepdims=True, initial=0.0)) if finite.ndim > 1 else finite

"""Stages: which part of a batch norm is wrong first, told from what was observed, without any hypothesis.

A batch norm is a chain: each rank's statistics, their merge over ranks, the normalisation of the elements,
the running buffers; backwards the sums, and the elements of the input's gradient. Whatever a stage gives
wrong is wrong in all that follows. So each later stage is computed anew from the *observed* earlier one:
where that gives what was observed, the later stage is right.

Rules
-----
- A trial is looked at in the order of its schedule, up to the first quantity that is beyond its bound.
- What a subject computes inside is read off the outside: an output that is right but for its statistics is a
  straight line of the input in each channel, and the line tells mean and deviation; a gradient that is right
  but for its sums is one of cotangent and normalised input.
- A trial that cannot tell two stages apart is not `sure`, and counts where no other is: two values a channel
  lie on some line whatever they are, though the line tells mean and deviation all the same.
- A fault of the statistics shows on a rank that is alone; what needs a second rank is one of the merge.
- Of the gradient's two terms each is a sum times what it is multiplied by: one that is left out, or has the
  wrong sign, is a fault of the elements; one of another size is a fault of its sum.
- Where the subject also writes into what is not its own, wrong numbers may be those of overwritten tensors,
  and tell nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from properties.case import Case, events
from properties.diagnosis.straight_line import Line, fitted
from properties.expectation.expected import Expected
from properties.judge.bounded import beyond, match
from properties.judge.catalogue import NUMERIC
from properties.observation import Observation
from properties.values import elements
from properties.values.period import is_large

Floats = NDArray[np.float64]
_Places = dict[int, NDArray[np.bool_]]
Stage = Literal[
    "statistics", "merge", "normalise", "buffers", "backward-sums", "backward-elements", "ending", "other"
]
WORDS: dict[str, str] = {
    "statistics": "the statistics of a rank's own values",
    "merge": "the merge of the ranks' statistics",
    "normalise": "the normalisation of the elements",
    "buffers": "the running buffers",
    "backward-sums": "the sums of the backward, or the parameters' gradients",
    "backward-elements": "the elements of the input's gradient",
    "ending": "how it ends",
    "other": "none of the numbers",
}
_ENDINGS = ("ending", "refusal", "collectives", "eval_is_local")
_NUMBERS = (*NUMERIC, "nonfinite", "num_batches_tracked", "agreement")
_SAME = 0.02
"""Relative difference within which two terms are the same."""
_FEW_EPS = 3.0
"""A variance that is off by no more of them than so many, with the right mean, is one of another eps."""


class Seen(Protocol):
    """The part of `properties.diagnosis.diagnose.Evidence` that is needed here."""

    @property
    def case(self) -> Case: ...  # noqa: D102

    @property
    def observation(self) -> Observation: ...  # noqa: D102

    @property
    def violated(self) -> tuple[str, ...]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Sight:
    """The stage that one trial shows.

    Attributes:
        stage: Its name.
        sure: The trial tells it from the others.
        alone: Of a wrong forward: it shows with a single rank.
    """

    stage: Stage
    sure: bool = False
    alone: bool = False


def first_wrong(evidence: Sequence[Seen], expected: Sequence[Expected]) -> Stage | None:
    """Return the stage that is wrong first; None if nothing tells.

    Args:
        evidence: Trials of one subject, each of which violates something.
        expected: What each was judged by.
    """
    names = {name for seen in evidence for name in seen.violated}
    if "purity" in names:
        return "other"
    sights = [
        found
        for seen, right in zip(evidence, expected, strict=True)
        if (found := _Trial(seen.case, seen.observation, right).first())
    ]
    if sights:
        return _agreed(sights)
    if not names or names & set(_NUMBERS):
        return None
    return "ending" if names & set(_ENDINGS) else "other"


def _agreed(sights: Sequence[Sight]) -> Stage:
    """Return the stage that most trials show, the sure ones first."""
    forward = {"statistics", "merge"}
    alone = any(one.alone and one.stage in forward for one in sights)
    told = [
        Sight("statistics" if alone else "merge", one.sure, one.alone) if one.stage in forward else one
        for one in sights
    ]
    sure = [one for one in told if one.sure]
    # Buffers that are not sure may be those of wrong statistics, which another trial shows.
    rest = [one for one in told if one.stage != "buffers"]
    return Counter(one.stage for one in sure or rest or told).most_common(1)[0][0]


@dataclass
class _Trial:
    """One trial, quantity by quantity."""

    case: Case
    observation: Observation
    expected: Expected
    _places: dict[str, dict[tuple[str, int], NDArray[np.bool_]]] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> dict[tuple[int, int], tuple[Floats, Floats]]:
        return elements.complete(self.case, range(self.case.world_size))

    @cached_property
    def start(self) -> elements.Parameters:
        return elements.parameters(self.case)

    def first(self) -> Sight | None:
        """Return what is wrong first."""
        if is_large(self.case):
            return None
        for what, k in events(self.case):
            found = self._forward(k) if what == "forward" else self._backward(k)
            if found is not None:
                return found
        if any(self._wrong(f"{name}.end") for name in ("running_mean", "running_var")):
            return Sight("buffers", sure=True)
        return None

    def _wrong(self, name: str) -> _Places:
        """Return where `name` is wrong, by rank, of those ranks where it is somewhere."""
        quantity = name.partition(".")[0]
        if quantity not in self._places:
            matching = match(quantity, case=self.case, observation=self.observation, expected=self.expected)
            places = beyond(matching)
            for pair in matching.pairs:
                one = pair.interval
                lost = np.isnan(one.value) & (one.bound == 0) & np.isfinite(pair.tensor.values)
                if lost.any():
                    places[pair.name, pair.rank] = lost | places.get((pair.name, pair.rank), False)
            self._places[quantity] = places
        return {rank: wrong for (one, rank), wrong in self._places[quantity].items() if one == name}

    def _miscounted(self, k: int) -> bool:
        name = f"num_batches_tracked.{k}"
        return any(
            name in self.observation.ranks[rank].tensors
            and int(self.observation.ranks[rank].tensors[name].array) != count
            for rank, count in self.expected.tracked.get(name, {}).items()
        )

    @property
    def _alone(self) -> bool:
        return self.case.world_size == 1

    # The forward

    def _forward(self, k: int) -> Sight | None:
        outputs = self._wrong(f"output.{k}")
        mean, var = self._wrong(f"running_mean.{k}"), self._wrong(f"running_var.{k}")
        if not outputs:
            return self._tracked(k, mean, var)
        step = self.case.steps[k]
        if step.mode == "eval" and self.case.tracking:
            return Sight("normalise", sure=True)
        lines: set[str] = set().union(*(self._line(k, rank, wrong) for rank, wrong in outputs.items()))
        if "bent" in lines:
            return Sight("normalise", sure=True)
        alone = self._alone or step.mode == "eval"
        if mean or var:
            return Sight("merge", sure="straight" in lines, alone=alone)
        if "visible" in lines or "eps" in lines:
            return Sight("normalise", sure="visible" in lines)
        return Sight("merge", alone=alone)

    def _tracked(self, k: int, mean: _Places, var: _Places) -> Sight | None:
        """Return what wrong buffers tell beside right outputs.

        The statistics may be wrong all the same, where the outputs would not show it; gradients may.
        """
        if self._miscounted(k):
            return Sight("buffers", sure=True)
        if not mean and not var:
            return None
        training = self.case.steps[k].mode == "train"
        names = ("grad_input", "grad_weight", "grad_bias")
        if training and any(self._wrong(f"{name}.{k}") for name in names):
            return Sight("merge", alone=self._alone)
        return Sight("buffers", sure=not training or self._contradicted(k, mean, var))

    def _contradicted(self, k: int, mean: _Places, var: _Places) -> bool:
        """Whether outputs that are right contradict the statistics that wrong buffers tell."""
        case, share = self.case, self._momentum(k)
        if not share:
            return True
        for name, places in (("running_mean", mean), ("running_var", var)):
            start = getattr(self.start, name)
            for rank, wrong in places.items():
                before = self.expected.tensors[f"{name}.{k - 1}"][rank].value if k else start
                buffer = self.expected.tensors[f"{name}.{k}"][rank]
                observed = self.observation.ranks[rank].tensors[f"{name}.{k}"].values
                told, meant = ((given - (1 - share) * before) / share for given in (observed, buffer.value))
                doubt = buffer.bound / share
                interval = self.expected.tensors[f"output.{k}"].get(rank)
                if interval is None or not interval.bound.size:
                    continue
                for c in np.flatnonzero(wrong):
                    values = self._values(rank, k, int(c))
                    weight = abs(elements.affine(case, k)[0][c]) if case.has_weight else 1.0
                    with np.errstate(all="ignore"):
                        scale = weight / np.sqrt(values.var() + case.eps)
                        off = max(abs(told[c] - meant[c]) - doubt[c], 0.0) * np.sign(told[c] - meant[c])
                        if name == "running_mean":
                            moved = scale * abs(off)
                        else:
                            size = values.var()  # the buffer has n / (n - 1) of it
                            other = max(size * (1 + off / meant[c]), 0.0)
                            ratio = np.sqrt((size + case.eps) / (other + case.eps))
                            x = self.inputs[rank, k][0][:, c]
                            moved = scale * np.abs(x - values.mean()).max(initial=0.0) * abs(ratio - 1)
                    bound = interval.bound.reshape(case.at(k).shape_of(rank))[:, c]
                    if moved > 2 * bound.max(initial=0.0):
                        return True
        return False

    def _momentum(self, k: int) -> float:
        """Return the share of a step's statistics in the buffers after it."""
        if self.case.momentum is not None:
            return self.case.momentum
        return 1.0 / (1 + sum(step.mode == "train" for step in self.case.steps[:k]))

    def _values(self, rank: int, k: int, c: int) -> Floats:
        """Return the values of a channel over the rank's group, (n,)."""
        group = next(group for group in self.case.process_groups if rank in group)
        return np.concatenate([self.inputs[r, k][0][:, c].ravel() for r in group])

    def _line(self, k: int, rank: int, wrong: NDArray[np.bool_]) -> set[str]:
        """Return how the rank's outputs lie: on a `straight` line or not (`bent`), and what the line tells.

        It is nothing if there are too few values to tell.
        """
        x, _ = self.inputs[rank, k]
        tensor = self.observation.ranks[rank].tensors[f"output.{k}"]
        interval = self.expected.tensors[f"output.{k}"][rank]
        arrays = [array.reshape(x.shape) for array in (tensor.values, interval.bound, interval.value)]
        shown: set[str] = set()
        for c in np.flatnonzero(wrong.reshape(x.shape).any(axis=(0, 2))):
            y, bound, right = (array[:, c].ravel() for array in arrays)
            line = fitted(x[:, c].ravel(), y, bound=bound, right=right)
            if line is None:
                continue
            if not line.holds:  # two values at one place may differ, too
                return {"bent"}
            shown |= {"straight"} if line.tells else set()
            shown.add(self._of_line(k, rank, int(c), line, float(bound.max())))
        return shown

    def _of_line(self, k: int, rank: int, c: int, line: Line, bound: float) -> str:
        """Return what statistics a line of outputs tells.

        They are `visible` if they would put the buffers beyond their bounds; those of another `eps` if the
        mean is right and the variance off by a few of it; else "".
        """
        case = self.case
        weight = self.start.weight[c] if case.has_weight else 1.0
        bias = self.start.bias[c] if case.has_bias else 0.0
        values = self._values(rank, k, c)
        if not weight or not line.slope or not np.isfinite(values).all() or len(values) < 2:
            return ""
        off = abs((bias - line.constant) / line.slope - values.mean())
        variance = abs((weight / line.slope) ** 2 - case.eps - values.var())
        for name, amount in (("running_mean", off), ("running_var", variance)):
            interval = self.expected.tensors.get(f"{name}.{k}", {}).get(rank)
            if interval is None or case.steps[k].mode != "train":
                continue
            if self._momentum(k) * amount > 2 * float(interval.bound[c]):
                return "visible"
        few = variance <= _FEW_EPS * case.eps * (1 + values.std())
        return "eps" if few and off * abs(line.slope) <= 2 * bound else ""

    # The backward

    def _backward(self, k: int) -> Sight | None:
        inputs = self._wrong(f"grad_input.{k}")
        parameters = {**self._wrong(f"grad_weight.{k}"), **self._wrong(f"grad_bias.{k}")}
        if not inputs:
            return Sight("backward-sums", sure=True) if parameters else None
        if self.case.steps[k].mode == "eval":
            return Sight("backward-elements", sure=True)
        forms: set[str] = set().union(*(self._form(k, rank, wrong) for rank, wrong in inputs.items()))
        if "bent" in forms:
            return Sight("backward-elements", sure=True)
        told = "straight" in forms
        if "term" in forms:
            return Sight("backward-elements", sure=told)
        if self._alone and not parameters and not told:  # the sums of the parameters are right
            return Sight("backward-elements")
        return Sight("backward-sums", sure=told)

    def _form(self, k: int, rank: int, wrong: NDArray[np.bool_]) -> set[str]:
        """Return whether weight / deviation (g - a - b xhat) gives the rank's gradient for some a and b.

        It is `straight` if so and `bent` if not; a `term` is left out, or has the wrong sign, if a or b is 0
        or minus what it must be in every channel.
        """
        x, g = self.inputs[rank, k]
        g = np.broadcast_to(g, x.shape)
        tensor = self.observation.ranks[rank].tensors[f"grad_input.{k}"]
        interval = self.expected.tensors[f"grad_input.{k}"][rank]
        given, bound, right = (
            array.reshape(x.shape) for array in (tensor.values, interval.bound, interval.value)
        )
        shown: set[str] = set()
        terms: list[bool] = []
        for c in np.flatnonzero(wrong.reshape(x.shape).any(axis=(0, 2))):
            values = self._values(rank, k, int(c))
            if not np.isfinite(values).all():
                continue
            weight = self.start.weight[c] if self.case.has_weight else 1.0
            with np.errstate(all="ignore"):
                scale = weight / np.sqrt(values.var() + self.case.eps)
            if not scale or not np.isfinite(scale):
                continue
            own = scale * g[:, c].ravel()
            near, meant = bound[:, c].ravel(), right[:, c].ravel()
            line = fitted(x[:, c].ravel(), given[:, c].ravel() - own, bound=near, right=meant)
            due = fitted(x[:, c].ravel(), meant - own, bound=near, right=meant)
            if line is None or due is None:
                continue
            if not line.holds:
                return {"bent"}
            shown |= {"straight"} if line.tells else set()
            terms.append(
                _lacks_a_term(line, due, center=values.mean(), spread=values.std(), bound=near.max())
            )
        return shown | ({"term"} if terms and all(terms) else set())


def _lacks_a_term(line: Line, due: Line, *, center: float, spread: float, bound: float) -> bool:
    """Whether one of a line's two terms is 0 or minus what it must be, and the other is right."""
    pairs = (
        (line.constant + line.slope * center, due.constant + due.slope * center),
        (line.slope * spread, due.slope * spread),
    )
    near = [_SAME * abs(meant) + 2 * bound for _, meant in pairs]
    right = [abs(seen - meant) <= least for (seen, meant), least in zip(pairs, near, strict=True)]
    lost = [
        not same and min(abs(seen), abs(seen + meant)) <= least
        for (seen, meant), least, same in zip(pairs, near, right, strict=True)
    ]
    return any(lost) and all(one or other for one, other in zip(lost, right, strict=True))

"""A synchronized batch norm in plain numpy, of which every line can be replaced.

`properties.diagnosis.slips` lists lines as people get them wrong, `properties.diagnosis.plain_schedule` says
what a subject with such a line gives for a case.

Rules
-----
- In float64 and straightforward: a slip is another formula, which is off by far more than rounding.
- A line is a function of the step and of what the lines before it gave, for one rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from properties.case import Case, Dtype
from properties.domain import Contract

Floats = NDArray[np.float64]


class Moments(NamedTuple):
    """How many values there are, and their mean and biased variance, (C,)."""

    n: float
    mean: Floats
    var: Floats


class Sums(NamedTuple):
    """Sums over the values of each channel, (C,): of g, and of g xhat."""

    cotangent: Floats
    projection: Floats


class Buffers(NamedTuple):
    """Running mean and variance, (C,)."""

    mean: Floats
    var: Floats


@dataclass(frozen=True)
class Step:
    """What the lines of one step of one process group know.

    Attributes:
        case: With the sizes of this step.
        number: Of the step in the schedule.
        members: The ranks that normalise together.
        x, g: Input and cotangent of each, (N, C, positions).
        weight, bias: (C,); ones and zeros where there are none.
        training: The mode.
        batch: It normalises with the members' batch, not with the buffers.
        contract: Which convention is right.
        rounding: Dtype of intermediates, for slips that round them; None is the input's.
    """

    case: Case
    number: int
    members: tuple[int, ...]
    x: tuple[Floats, ...]
    g: tuple[Floats, ...]
    weight: Floats
    bias: Floats
    training: bool
    batch: bool
    contract: Contract
    rounding: Dtype | None = None

    @property
    def half(self) -> Dtype:
        """The dtype that slips round to."""
        return self.rounding or self.case.dtype

    @cached_property
    def counts(self) -> Floats:
        """Values a channel of each member."""
        return np.array([x.shape[0] * x.shape[2] for x in self.x], np.float64)

    @property
    def total(self) -> float:
        """Values a channel over all members."""
        return float(self.counts.sum())

    @cached_property
    def rows(self) -> tuple[Floats, ...]:
        """The members' inputs as (C, values), samples in their order, positions within."""
        return tuple(x.transpose(1, 0, 2).reshape(x.shape[1], -1) for x in self.x)

    def across(self, values: Floats) -> Floats:
        """Return (C,) as it multiplies (N, C, positions)."""
        return values[:, None]


def moments_of(rows: Floats, count: float | None = None) -> Moments:
    """Return the moments of (C, values), as if there were `count`; zeros of none."""
    n = rows.shape[1] if count is None else count
    if n == 0:
        return Moments(0.0, np.zeros(len(rows)), np.zeros(len(rows)))
    mean = rows.sum(axis=1) / n
    return Moments(n, mean, ((rows - mean[:, None]) ** 2).sum(axis=1) / n)


def _moments(step: Step, slot: int) -> Moments:
    return moments_of(step.rows[slot])


def merged(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    """Return the moments of all parts together, as the member in `slot` has them."""
    del slot
    n = sum(part.n for part in parts)
    if n == 0:
        return Moments(0.0, np.zeros(step.case.channels), np.zeros(step.case.channels))
    mean = sum(part.n * part.mean for part in parts) / n
    var = sum(part.n * (part.var + (part.mean - mean) ** 2) for part in parts) / n
    return Moments(n, np.asarray(mean), np.asarray(var))


def _scale(step: Step, slot: int, moments: Moments) -> Floats:
    del slot
    return np.asarray(1.0 / np.sqrt(moments.var + step.case.eps))


def _normalised(step: Step, slot: int, moments: Moments, scale: Floats) -> Floats:
    return (step.x[slot] - step.across(moments.mean)) * step.across(scale)


def _output(step: Step, slot: int, xhat: Floats) -> Floats:
    del slot
    return xhat * step.across(step.weight) + step.across(step.bias)


def _stored(step: Step, values: Floats) -> Floats:
    del step
    return values


def blend(old: Floats, new: Floats, share: float) -> Floats:
    """Return a buffer after an update with `share` of the new value."""
    return (1.0 - share) * old + share * new


def unbiased(step: Step, moments: Moments) -> Floats:
    """Return the variance as the running one is made of it."""
    if step.contract.running_var == "biased" or moments.n <= 1:
        return moments.var
    return moments.var * (moments.n / (moments.n - 1.0))


def _tracked(step: Step, slot: int, old: Buffers, moments: Moments, share: float) -> Buffers:
    del slot
    return Buffers(blend(old.mean, moments.mean, share), blend(old.var, unbiased(step, moments), share))


def summed(g: Floats, xhat: Floats) -> Sums:
    """Return the sums of (N, C, positions)."""
    return Sums(g.sum(axis=(0, 2)), (g * xhat).sum(axis=(0, 2)))


def _sums(step: Step, slot: int, xhat: Floats, scale: Floats) -> Sums:
    del scale
    return summed(step.g[slot], xhat)


def added(parts: Sequence[Sums]) -> Sums:
    """Return the sum of the members' sums."""
    return Sums(*(np.sum(each, axis=0) for each in zip(*parts, strict=True)))


def _reduced(step: Step, slot: int, parts: Sequence[Sums]) -> Sums:
    del step, slot
    return added(parts)


class Backward(NamedTuple):
    """What the input's gradient is made of on one member.

    Attributes:
        xhat: Normalised input, (N, C, positions).
        moments: That normalised it.
        scale: 1 / sqrt(var + eps), (C,).
        sums: Over all members.
        own: Over its own values.
    """

    xhat: Floats
    moments: Moments
    scale: Floats
    sums: Sums
    own: Sums


def corrected(step: Step, slot: int, of: Backward, *, count: float | None = None) -> Floats:
    """Return g less its mean and less xhat times the mean of g xhat."""
    n = max(step.total if count is None else count, 1.0)
    return step.g[slot] - step.across(of.sums.cotangent / n) - of.xhat * step.across(of.sums.projection / n)


def _gradient(step: Step, slot: int, of: Backward) -> Floats:
    inner = corrected(step, slot, of) if step.batch else step.g[slot]
    return inner * step.across(step.weight * of.scale)


def _parameters(step: Step, slot: int, of: Backward, parts: Sequence[Sums]) -> tuple[Floats, Floats]:
    """Return the gradients of weight and bias of one member."""
    del slot
    sums = of.own
    if step.contract.affine_grad != "local" and step.training:
        sums = added(parts)
        if step.contract.affine_grad == "mean":
            sums = Sums(sums.cotangent / len(parts), sums.projection / len(parts))
    return sums.projection, sums.cotangent


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The lines of a batch norm; the default is right.

    Attributes:
        moments: A member's own moments.
        merged: All members' moments, as one of them has them.
        scale: 1 / sqrt(var + eps).
        normalised: The normalised input.
        output: With weight and bias.
        stored: The output in its dtype; the rounding of storing is within the bounds.
        tracked: The buffers after an update with a share of the new values.
        sums: A member's own sums of the backward.
        reduced: All members' sums, as one of them has them.
        gradient: The input's.
        stored_gradient: It in its dtype.
        parameters: Gradients of weight and bias.
    """

    moments: Callable[[Step, int], Moments] = _moments
    merged: Callable[[Step, int, Sequence[Moments]], Moments] = merged
    scale: Callable[[Step, int, Moments], Floats] = _scale
    normalised: Callable[[Step, int, Moments, Floats], Floats] = _normalised
    output: Callable[[Step, int, Floats], Floats] = _output
    stored: Callable[[Step, Floats], Floats] = _stored
    tracked: Callable[[Step, int, Buffers, Moments, float], Buffers] = _tracked
    sums: Callable[[Step, int, Floats, Floats], Sums] = _sums
    reduced: Callable[[Step, int, Sequence[Sums]], Sums] = _reduced
    gradient: Callable[[Step, int, Backward], Floats] = _gradient
    stored_gradient: Callable[[Step, Floats], Floats] = _stored
    parameters: Callable[[Step, int, Backward, Sequence[Sums]], tuple[Floats, Floats]] = _parameters


RIGHT = Lines()


class Modes(NamedTuple):
    """The lines of a subject in training, in evaluation with the rank's own batch, and with the buffers."""

    train: Lines = RIGHT
    own: Lines = RIGHT
    running: Lines = RIGHT


def truncated(values: Floats, dtype: str) -> Floats:
    """Return values cut to a half dtype towards zero; float32 and float64 as they are."""
    digits = {"bfloat16": 8, "float16": 11}.get(dtype)
    if digits is None:
        return values
    mantissa, exponent = np.frexp(values)
    least = {"bfloat16": -133, "float16": -24}[dtype]
    kept = np.minimum(digits, exponent - least)
    return np.where(
        np.isfinite(values), np.ldexp(np.trunc(np.ldexp(mantissa, kept)), exponent - kept), values
    )


def up_to(count: float) -> int:
    """Return the least power of two that is no less than `count`."""
    return 1 << max(math.ceil(math.log2(max(count, 1.0))), 0)

"""All elements of a case in one vector: what is expected of them, and how far an observation is off."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from properties.expectation.expected import Expected, Interval
from properties.observation import Observation
from properties.values.elements import round_to
from verify.measure.sensitivity.closeness import excess

Floats = NDArray[np.float64]


class Segment(NamedTuple):
    """One tensor of one rank and where it lies in the vector."""

    name: str
    rank: int
    interval: Interval
    start: int

    @property
    def quantity(self) -> str:
        """The tensor's name without its step."""
        return self.name.partition(".")[0]

    @property
    def span(self) -> slice:
        """Its place in the vector."""
        return slice(self.start, self.start + self.interval.value.size)


class Elements:
    """The elements of all expected tensors of a case, in one vector.

    Args:
        expected: Of the case.
        dtype: Of its tensors.
    """

    def __init__(self, expected: Expected, dtype: str) -> None:
        self._dtype = dtype
        self._segments: list[Segment] = []
        start = 0
        for name, by_rank in expected.tensors.items():
            for rank, found in by_rank.items():
                interval = found.complete()
                self._segments.append(Segment(name, rank, interval, start))
                start += interval.value.size
        self._size = start
        self._value = self._joined([one.interval.value for one in self._segments])
        self._bound = self._joined([one.interval.bound for one in self._segments])
        overflows = self._joined([one.interval.overflows for one in self._segments])
        self._decided = np.isfinite(self._value) & np.isfinite(self._bound) & (overflows == 0)

    def beyond_bound(self, seen: Observation) -> Floats:
        """Return |observed - expected| / bound of each element; 0 where it is undecided."""
        with np.errstate(all="ignore"):
            difference = np.abs(self._observed(seen) - self._value)
            ratio = np.where(difference == 0, 0.0, difference / self._bound)
        return np.where(self._decided, ratio, 0.0)

    def beyond_tolerance(self, seen: Observation) -> Floats:
        """Return |observed - expected| / (atol + rtol |expected|), expected as it is stored."""
        with np.errstate(all="ignore"):
            ratio = excess(self._observed(seen), self._stored, dtype=self._dtype)
        return np.where(np.isfinite(ratio), ratio, 0.0)

    def of(self, quantity: str) -> NDArray[np.bool_]:
        """Return where the elements of `quantity` are."""
        found = np.zeros(self._size, np.bool_)
        for segment in self._segments:
            if segment.quantity == quantity:
                found[segment.span] = True
        return found

    def channel(self, number: int) -> NDArray[np.bool_]:
        """Return where the elements of channel `number` are."""
        return np.asarray(self._channels == number)

    def channel_of(self, position: int) -> int:
        """Return the channel of the element at `position`."""
        return int(self._channels[position])

    def place(self, position: int) -> tuple[int, int]:
        """Return rank and flattened index of the element at `position`."""
        segment = next(one for one in self._segments if one.span.start <= position < one.span.stop)
        return segment.rank, position - segment.start

    def steepest(self, quantity: str) -> int | None:
        """Return the position with the smallest bound / |value| in `quantity`; None without any."""
        with np.errstate(all="ignore"):
            relative = self._bound / np.abs(self._value)
        relative = np.where(self.of(quantity) & self._decided & np.isfinite(relative), relative, np.inf)
        position = int(relative.argmin()) if relative.size else 0
        return position if relative.size and np.isfinite(relative[position]) else None

    @cached_property
    def _stored(self) -> Floats:
        return round_to(self._value, self._dtype)  # type: ignore[arg-type]

    @cached_property
    def _channels(self) -> NDArray[np.int64]:
        return self._joined([_channels(one.interval.value.shape) for one in self._segments])

    def _observed(self, seen: Observation) -> Floats:
        """Return what was observed; a tensor that is absent, a gradient of an empty rank, is as expected."""
        parts = []
        for one in self._segments:
            tensor = seen.ranks[one.rank].tensors.get(one.name)
            parts.append(one.interval.value if tensor is None else tensor.values)
        return self._joined(parts)

    def _joined(self, parts: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([part.ravel() for part in parts]) if parts else np.zeros(0)


def _channels(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the channel of every element of (N, C, ...) or (C,)."""
    positions = np.arange(math.prod(shape))
    return positions // max(1, math.prod(shape[2:])) % max(1, shape[1]) if len(shape) > 1 else positions

"""A slip: one line of a batch norm that is written wrong, with the words that say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from properties.case import Dtype
from properties.diagnosis.causes.cause import Part
from properties.diagnosis.plain_batchnorm import Lines, Step
from properties.diagnosis.stages import Stage

HALVES: tuple[Dtype | None, ...] = (None, "float16", "bfloat16")
BLOCKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Sizes of blocks of values, of vectors and of unrolled loops."""


_STAGES: dict[str, Stage] = {
    "moments": "statistics",
    "merged": "merge",
    "scale": "normalise",
    "normalised": "normalise",
    "output": "normalise",
    "stored": "normalise",
    "tracked": "buffers",
    "sums": "backward-sums",
    "reduced": "backward-sums",
    "gradient": "backward-elements",
    "stored_gradient": "backward-elements",
    "parameters": "backward-sums",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slip:
    """A line that differs.

    Attributes:
        id: Its stable name.
        words: What the subject does, as a clause without a subject.
        classes: Fault classes that it belongs to; 0 for what no class names.
        part: Of the batch norm.
        change: Fields of `Lines` that differ.
        kind: Id of those that differ by a number alone, such as the size of a block; its own if there are
            none. Where several of a kind explain the same, the kind is told.
        kind_words: What it does, without the number.
        family: Id and words of what is common to many kinds; told in their place where the trials do not tell
            them apart. Empty if there is nothing.
    """

    id: str
    words: str
    classes: tuple[int, ...]
    part: Part
    change: dict[str, Any]
    kind: str
    kind_words: str
    family: tuple[str, str] = ("", "")

    @property
    def stage(self) -> Stage:
        """The stage (`properties.diagnosis.stages`) of the first line that differs."""
        return next(stage for line, stage in _STAGES.items() if line in self.change)

    def lines(self, base: Lines) -> Lines:
        """Return `base` with this slip."""
        return replace(base, **self.change)

    def as_family(self) -> Slip:
        """Return the slip under the name of its family."""
        name, words = self.family
        return replace(self, id=name, words=words, kind=name, kind_words=words)


def slip(id: str, words: str, classes: tuple[int, ...], part: Part, **change: Any) -> Slip:
    """Return a slip that is alone of its kind."""
    return Slip(id=id, words=words, classes=classes, part=part, change=change, kind=id, kind_words=words)


def by_block(
    id: str,
    words: str,
    classes: tuple[int, ...],
    part: Part,
    change: Callable[[int], dict[str, Any]],
    blocks: Iterable[int] = BLOCKS,
    *,
    family: tuple[str, str] = ("", ""),
) -> tuple[Slip, ...]:
    """Return a slip for each size of a block, which `words` have as {}; 0 is for powers of two."""
    return tuple(
        Slip(
            id=f"{id}-{block}",
            words=words.format(f" of {block}" if block else " of a power of two"),
            classes=classes,
            part=part,
            change=change(block),
            kind=id,
            kind_words=words.format(""),
            family=family,
        )
        for block in blocks
    )


def by_half(id: str, words: str, classes: tuple[int, ...], part: Part, **change: Any) -> tuple[Slip, ...]:
    """Return a slip that rounds to the input's dtype, and those that round every input's to one half dtype.

    `words` have what they round to as {}; `id` ends with -in-half.
    """
    stem = id.removesuffix("half")
    return tuple(
        Slip(
            id=stem + (dtype or "half-of-input"),
            words=words.format(dtype or "the input's half dtype"),
            classes=classes,
            part=part,
            change={line: _rounding(function, dtype) for line, function in change.items()},
            kind=id,
            kind_words=words.format("a half dtype"),
        )
        for dtype in HALVES
    )


def _rounding(function: Callable[..., Any], dtype: Dtype | None) -> Callable[..., Any]:
    """Return a line that rounds its intermediates to `dtype`."""

    @wraps(function)
    def line(step: Step, *given: Any) -> Any:
        return function(replace(step, rounding=dtype), *given)

    return line

"""A cause: a known fault with the variant of the reference that predicts it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from properties.diagnosis.stages import Stage
from properties.diagnosis.variant import Variant

Part = Literal["forward", "buffers", "count", "backward", "affine"]
_STAGES: dict[str, Stage] = {
    "merge": "merge",
    "scope": "merge",
    "exchanged_moments": "merge",
    "root": "normalise",
    "eps": "normalise",
    "parameters": "normalise",
}
PROPERTIES_OF: dict[Part, tuple[str, ...]] = {
    "forward": ("forward",),
    "buffers": ("running_mean", "running_var"),
    "count": ("num_batches_tracked",),
    "backward": ("grad_input",),
    "affine": ("grad_weight", "grad_bias"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A known cause.

    Attributes:
        id: Its stable name.
        words: What the subject does, as a clause without a subject.
        classes: Fault classes that it belongs to.
        part: Of the batch norm.
        change: Fields of `Variant` that differ from the right ones.
        floor: Ratio that the observation must reach under the cause's own bound: a cause that only widens
            the bound explains nothing that is far below it.
    """

    id: str
    words: str
    classes: tuple[int, ...]
    part: Part
    change: dict[str, Any]
    floor: float = 0.0

    @property
    def stage(self) -> Stage | None:
        """The stage (`properties.diagnosis.stages`) of what differs in a forward or the buffers, if it says.

        Two values a channel lie on some line whatever they are; the numbers alone then tell less.
        """
        if self.part == "buffers":
            return "buffers"
        return next((_STAGES[one] for one in self.change if one in _STAGES and self.part == "forward"), None)

    def variant(self, base: Variant) -> Variant:
        """Return `base` with this cause's change."""
        contract = {**base.contract, **self.change.get("contract", {})}
        return replace(base, **{**self.change, "contract": contract})

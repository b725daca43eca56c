"""The slips: lines of a batch norm as people get them wrong, each with what a subject that has it gives.

A slip is told where no cause (`properties.diagnosis.causes`) explains what is violated. Within a part the
most specific comes first.
"""

from __future__ import annotations

from properties.diagnosis.slips.buffer_slips import TRACKED
from properties.diagnosis.slips.gradient_slips import ELEMENTS
from properties.diagnosis.slips.merge_slips import MERGE
from properties.diagnosis.slips.moment_slips import OWN
from properties.diagnosis.slips.output_slips import NORMALISE
from properties.diagnosis.slips.parameter_slips import PARAMETERS
from properties.diagnosis.slips.slip import Slip
from properties.diagnosis.slips.stored_gradient_slips import STORED
from properties.diagnosis.slips.sum_slips import SUMS

__all__ = [
    "AFFINE_SLIPS",
    "ALL_SLIPS",
    "BACKWARD_SLIPS",
    "BUFFER_SLIPS",
    "CLASSES",
    "FORWARD_SLIPS",
    "SCOPES",
    "SUFFIXES",
    "WORDS",
    "Slip",
]

FORWARD_SLIPS: tuple[Slip, ...] = (*MERGE, *NORMALISE, *OWN)
BUFFER_SLIPS: tuple[Slip, ...] = TRACKED
BACKWARD_SLIPS: tuple[Slip, ...] = (*SUMS, *ELEMENTS, *STORED)
AFFINE_SLIPS: tuple[Slip, ...] = (*PARAMETERS, *SUMS)
ALL_SLIPS: tuple[Slip, ...] = (*FORWARD_SLIPS, *BUFFER_SLIPS, *ELEMENTS, *STORED, *SUMS, *PARAMETERS)
SCOPES: dict[str, set[str]] = {
    "": {"train", "own", "running"},
    "batch": {"train", "own"},
    "running": {"running"},
    "train": {"train"},
}
"""Modes (`properties.diagnosis.plain_batchnorm.Modes`) in which a slip may act."""
SUFFIXES: dict[str, str] = {
    "": "",
    "batch": "-with-batch-statistics",
    "running": "-with-running-statistics",
    "train": "-in-training",
}
"""What ends the id of a slip that acts in some modes alone."""
_IN: dict[str, str] = {
    "": "",
    "batch": "; with the batch's statistics alone",
    "running": "; with the running statistics alone",
    "train": "; in training alone",
}
WORDS: dict[str, str] = {
    name + end: words + _IN[scope]
    for one in ALL_SLIPS
    for name, words in (one.family, (one.kind, one.kind_words), (one.id, one.words))
    if name
    for scope, end in SUFFIXES.items()
}
"""What a subject does that has a slip, or one of a kind or family, by its id."""
CLASSES: dict[str, tuple[int, ...]] = {
    name + end: one.classes
    for one in ALL_SLIPS
    for name in (one.family[0], one.kind, one.id)
    if name
    for end in SUFFIXES.values()
}

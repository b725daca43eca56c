"""Cards of the subjects apart: faults that people make, on which the diagnosis is measured and never tuned.

A file a module of `verify/faults/apart`, with a table for each subject:

    [[subject]]
    id = "apart-full-blocks"
    subject = "FullBlocks"                      # the class in the module beside this file
    stage = "statistics"                        # what is wrong first (`properties.diagnosis.stages`)
    class = 0                                   # its fault class (`verify.faults.classes`), 0 for none
    accept = [22]                               # other classes that describe it as well
    set = 2                                     # which sixty it belongs to; 1 if it is not said
    wrong = "Every block counts as full."

and one `[[right]]` for each subject without a fault that they are made from.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from verify.faults.cards import CardError
from verify.faults.classes import CLASSES

_FOLDER = Path(__file__).with_name("apart")


class ApartCard(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"number": "class"}
):
    """What is true of one subject.

    Attributes:
        id: Stable name.
        subject: Name of the class in its module.
        stage: What is wrong first.
        number: Of its fault class; 0 for what no class names.
        accept: Classes that describe it as well.
        wrong: What it does, in one sentence.
        set: 1 the first sixty; 2 and 3 those that others wrote after causes had been tuned on those before.
        module: Name of its module, which the file's name says.
    """

    id: str
    subject: str
    stage: str
    number: int
    wrong: str
    accept: tuple[int, ...] = ()
    set: int = 1
    module: str = ""

    def __post_init__(self) -> None:
        if not {self.number, *self.accept} <= {0, *CLASSES}:
            raise CardError(
                f"Expected classes from 0 to {len(CLASSES)} of {self.id!r}, but got "
                f"class={self.number}, accept={list(self.accept)}."
            )

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes of which one must be that of a cause that is named."""
        return (self.number, *self.accept)

    @property
    def spec(self) -> str:
        """The SPEC that a rank loads it by."""
        return f"verify.faults.apart.{self.module}:{self.subject}"


class ApartRight(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A right subject that others are made from: its class, and the grade it is judged by."""

    subject: str
    grade: Literal["A", "B", "C"] = "A"
    module: str = ""

    @property
    def spec(self) -> str:
        """The SPEC that a rank loads it by."""
        return f"verify.faults.apart.{self.module}:{self.subject}"


@cache
def apart_cards() -> tuple[ApartCard, ...]:
    """Return the subjects apart, by module and in the order of their files.

    Raises:
        CardError: If a file is not as expected, or two cards have one id.
    """
    found: tuple[ApartCard, ...] = _tables("subject", ApartCard)
    ids = [card.id for card in found]
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise CardError(f"Expected ids of subjects apart to be unique, but got {twice} twice.")
    return found


@cache
def apart_right() -> tuple[ApartRight, ...]:
    """Return the right subjects that they are made from.

    Raises:
        CardError: If a file is not as expected.
    """
    found: tuple[ApartRight, ...] = _tables("right", ApartRight)
    return found


def _tables(name: str, kind: type[Any]) -> tuple[Any, ...]:
    found = []
    for path in sorted(_FOLDER.glob("*.toml")):
        try:
            for entry in tomllib.loads(path.read_text("utf-8")).get(name, []):
                found.append(msgspec.convert({**entry, "module": path.stem}, kind))
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise CardError(f"Expected cards in {path.name}, but got {error}.") from None
    return tuple(found)

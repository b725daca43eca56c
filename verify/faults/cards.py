"""A card: what is known of one deliberate fault, as data that needs no torch.

    [[fault]]
    id = "equal-weights"                        # unique over all families
    subject = "EqualWeights"                    # factory in the family's module
    class = 1                                   # of `verify/faults/classes.py`; 0 for what no class names
    wrong = "Weighs ranks equally, whatever their counts."
    effect = "Output and buffers are those of another batch."
    trigger = "Ranks of different counts."
    source = "NVIDIA/apex#387"
    caught_by = ["forward", "running_mean"]     # every one of these properties must be violated
    nameable = true                             # a hypothesis predicts it, so that its class can be named
    small = true                                # shows with two ranks and one channel

Rules
-----
- Ids are part of reports: they never change.
- A fault is the smallest change to a right subject.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from verify.faults.classes import CLASSES

_FOLDER = Path(__file__).parent
RIGHT_FAMILIES = ("right", "written")


class CardError(ValueError):
    """A card that cannot be used; the message names its file."""


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"number": "class"}):
    """What is known of one fault.

    Attributes:
        id: Stable name.
        subject: Name of the factory in the family's module.
        number: Of its class in `verify.faults.classes`; 0 for what no class names.
        wrong, effect, trigger: One sentence each.
        source: Thread or commit in which it was a real fault, or what it imitates.
        caught_by: Properties that must be violated.
        nameable: Whether a hypothesis predicts it; where none does, any cause named is a false one.
        small: Whether it shows with two ranks and one channel, so that the minimal case must get there.
        family: Name of its module, which the file's name says.
    """

    id: str
    subject: str
    number: int
    wrong: str
    effect: str
    trigger: str
    source: str
    caught_by: tuple[str, ...]
    nameable: bool = True
    small: bool = True
    family: str = ""

    def __post_init__(self) -> None:
        last = len(CLASSES)
        if not 0 <= self.number <= last:
            raise CardError(f"Expected a class from 0 to {last}, but got class={self.number} in {self.id!r}.")
        if not self.caught_by:
            raise CardError(f"Expected properties that catch {self.id!r}, but got caught_by=[].")

    @property
    def masked(self) -> bool:
        """Whether it acts only where a known discrepancy of torch is at work (`verify.faults.masked`)."""
        return self.family == "masked"

    @property
    def spec(self) -> str:
        """The SPEC that a rank loads it by."""
        return f"verify.faults.{self.family}:{self.subject}"


class RightCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A right subject: SPEC, in which way it differs from the others, and the grade it is judged by.

    `right` are those with a formula of their own, each a mechanism; `written` those in plain torch.
    """

    spec: str
    differs: str
    grade: Literal["A", "B", "C"] = "A"
    family: str = ""

    @property
    def name(self) -> str:
        """Its name among the right subjects."""
        return self.spec.rpartition(":")[2]


class ContractCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A subject that needs another contract than the default one, or that breaks the one it declares.

    Attributes:
        key: What it declares, `key=value`.
        subject: Name of the class, in `verify.faults.contracts`; if it `breaks`, in `verify.faults.breaches`.
        does: One sentence.
        case: A case as JSON.
        reported_by: Properties that the case violates: of a right subject under the default contract, if it
            is not right under that, too; of one that `breaks` its contract under its own.
        breaks: Whether it is wrong under the contract that it declares.
    """

    key: str
    subject: str
    does: str
    case: str
    reported_by: tuple[str, ...] = ()
    breaks: bool = False

    def __post_init__(self) -> None:
        if self.breaks and not self.reported_by:
            raise CardError(f"Expected properties that report {self.subject!r}, but got reported_by=[].")

    @property
    def spec(self) -> str:
        """The SPEC that a rank loads it by."""
        return f"verify.faults.{'breaches' if self.breaks else 'contracts'}:{self.subject}"


@cache
def contract_cards() -> tuple[ContractCard, ...]:
    """Return the subjects that declare another contract than the default one.

    Raises:
        CardError: If the file is not as expected.
    """
    path = _FOLDER / "contracts.toml"
    return tuple(_converted(path, entry, ContractCard) for entry in _tables(path, "contract"))


@cache
def cards() -> tuple[Card, ...]:
    """Return the cards of all families, by family and in the order of their files.

    Raises:
        CardError: If a file is not as expected, or two cards have one id.
    """
    found: list[Card] = []
    for path in sorted(_FOLDER.glob("*.toml")):
        for entry in _tables(path, "fault"):
            found.append(_converted(path, {**entry, "family": path.stem}, Card))
    ids = [card.id for card in found]
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise CardError(f"Expected fault ids to be unique, but got {twice} twice.")
    return tuple(found)


@cache
def right_cards() -> tuple[RightCard, ...]:
    """Return the right subjects that must never be accused.

    Raises:
        CardError: If the file is not as expected.
    """
    paths = [_FOLDER / f"{family}.toml" for family in RIGHT_FAMILIES]
    return tuple(
        _converted(path, {**entry, "family": path.stem}, RightCard)
        for path in paths
        for entry in _tables(path, "right")
    )


def _tables(path: Path, name: str) -> list[dict[str, Any]]:
    try:
        tables: list[dict[str, Any]] = tomllib.loads(path.read_text("utf-8")).get(name, [])
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"Expected TOML in {path.name}, but got {error}.") from None
    return tables


def _converted(path: Path, entry: dict[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(entry, kind)
    except msgspec.ValidationError as error:
        raise CardError(f"Expected a card in {path.name}, but got {entry!r}: {error}.") from None

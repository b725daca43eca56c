"""Reading: lines of a record as what they were written from, validated whole.

Rules
-----
- Whatever a line holds, the outcome is a value or a `ValueError`, `OverflowError` or `RecursionError`.
- No text keeps characters that would command a terminal.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar, get_args

import msgspec

from properties.case import Case
from properties.case_checks import MAX_WORLD_SIZE
from properties.domain import Grade
from properties.judge.catalogue import PROPERTIES
from properties.observation import Ending, Observation, tensor_from_data
from properties.verdict import Outcome, Verdict
from verify.record.recall import Place, Recalled
from verify.result import SubjectResult
from verify.trial import Excused, Trial

COUNTS = ("elements", "max_ratio", "undecided", "blind")
"""What a property that holds is recorded by, in this order and without zeros at the end.

Version 0.1.0 had a fifth, the elements of large tensors that it did not judge."""
_FLOATS = frozenset({"max_ratio", "holds", "ratio", "ratios", "bound", "observed", "expected"})
"""Keys below which "nan", "inf" and "-inf" are numbers; see `verify.strict_json`."""
_SPELLED = {name: float(name) for name in ("nan", "inf", "-inf")}
_ENDINGS = ("", *get_args(Ending))
_EXPECTATIONS = ("HOLDS", "VIOLATED")
_STATES = ("seen", "stale", "not exercised")
_SIZES = frozenset(map(str, range(1, MAX_WORLD_SIZE + 1)))
_ORDER = {name: place for place, name in enumerate(PROPERTIES)}
_Read = TypeVar("_Read")


class _Trial(msgspec.Struct, frozen=True, kw_only=True):
    subject: str
    id: str
    case: Case
    place: Place
    holds: tuple[tuple[str | int | float, ...], ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    excused: tuple[Excused, ...] = ()
    satisfied: Literal["A", "B", "C", "none", ""] = ""
    ratios: dict[Grade, dict[str, float]] = {}
    seconds: float = 0.0
    internal: str = ""
    observation: Observation | None = None


def struct_from(text: bytes, kind: type[_Read]) -> _Read:
    """Return the line `text` as a value of the type `kind`."""
    return msgspec.convert(_restored(msgspec.json.decode(text)), type=kind)


def trial_from(text: bytes) -> tuple[str, Recalled]:
    """Return the subject and the trial that a line `trial` was written from; `expected` is not kept.

    Raises:
        ValueError: If it is not as a record has it.
    """
    data = msgspec.convert(_with_tensors(_restored(msgspec.json.decode(text))), type=_Trial)
    _require(data.id == data.case.id, "the id of its case", id=data.id)
    verdicts = (*(_verdict(one) for one in data.holds), *data.verdicts)
    for verdict in verdicts:
        _check_verdict(verdict)
    _check_place(data.place)
    for observed in (data.observation, data.observation and data.observation.again):
        if observed:
            ranks = [rank.rank for rank in observed.ranks]
            _require(ranks == list(range(len(ranks))), "ranks in their order", ranks=ranks)
    trial = Trial(
        case=data.case,
        verdicts=tuple(sorted(verdicts, key=lambda verdict: _ORDER[verdict.property])),
        excused=data.excused,
        observation=data.observation,
        satisfied=data.satisfied,
        graded={str(grade): dict(ratios) for grade, ratios in data.ratios.items()},
        internal=data.internal,
        seconds=data.seconds,
    )
    return data.subject, Recalled(trial, data.place)


def check_result(result: SubjectResult) -> None:
    """Check what the types of a result do not say.

    Raises:
        ValueError: If it is not one that a campaign ends with.
    """
    _require(result.verdict in Outcome.__members__, "a verdict", verdict=result.verdict)
    _require(result.expectation in _EXPECTATIONS, "an expectation", expectation=result.expectation)
    names = {failure.property for failure in result.failures} | set(result.properties)
    names |= set(result.stands_on.properties)
    _require(names <= set(PROPERTIES), "known properties", properties=sorted(names))
    sizes = result.stands_on.world_sizes
    _require(all(size in _SIZES for size in sizes), "numbers of ranks", world_sizes=sorted(sizes))
    _require(all(known.state in _STATES for known in result.known), "known states", subject=result.subject)


def _verdict(short: tuple[str | int | float, ...]) -> Verdict:
    """Return the verdict that a line has in short: a property that holds, and its counts."""
    _require(0 < len(short) <= 2 + len(COUNTS), "a property and its counts", holds=short)
    fields = {"property": short[0], "outcome": Outcome.HOLDS, **dict(zip(COUNTS, short[1:], strict=False))}
    return msgspec.convert(fields, type=Verdict)


def _check_verdict(verdict: Verdict) -> None:
    _require(verdict.property in PROPERTIES, "a known property", property=verdict.property)
    counts = (verdict.elements, verdict.undecided, verdict.blind)
    _require(all(0 <= count < 2**63 for count in counts), "counts from 0 on", counts=counts)
    _require(
        all(found.ending in _ENDINGS for found in verdict.discrepancies),
        "endings of a rank",
        property=verdict.property,
    )
    _require(
        bool(verdict.discrepancies) or verdict.outcome is not Outcome.VIOLATED,
        "a discrepancy where a property is violated",
        property=verdict.property,
    )


def _check_place(place: Place) -> None:
    times = (place.elapsed, place.took)
    _require(all(0 <= seconds < 1e12 for seconds in times), "seconds from 0 on", seconds=times)
    _require(0 <= place.runs < 2**53, "runs from 0 on", runs=place.runs)


def _with_tensors(data: Any) -> Any:
    """Return the plain data of a trial with every stored tensor made one again; JSON has no type for it."""
    for observed in _dicts(data, "observation"):
        for run in (observed, *_dicts(observed, "again")):
            ranks = run.get("ranks")
            for rank in ranks if isinstance(ranks, list) else ():
                for tensors in _dicts(rank, "tensors"):
                    tensors.update({name: tensor_from_data(one) for name, one in tensors.items()})
    return data


def _dicts(data: Any, key: str) -> list[dict[str, Any]]:
    """Return what `data` has under `key`, if that is a dictionary; the types are checked afterwards."""
    found = data.get(key) if isinstance(data, dict) else None
    return [found] if isinstance(found, dict) else []


def _require(condition: bool, expected: str, **given: object) -> None:  # noqa: FBT001 - the only argument
    if not condition:
        values = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise ValueError(f"Expected {expected}, but got {values}.")


def _restored(value: Any, name: str = "") -> Any:
    """Return `value` with its numbers as numbers, and its texts without control characters."""
    if isinstance(value, dict):
        return {
            _printable(key): _restored(item, name if name == "ratios" else key) for key, item in value.items()
        }
    if isinstance(value, list):
        return [_restored(item, name) for item in value]
    if isinstance(value, str):
        if name in _FLOATS and value in _SPELLED:
            return _SPELLED[value]
        return _printable(value)
    return value


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)

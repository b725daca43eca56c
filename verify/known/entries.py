"""Known discrepancies: what a subject's author has declared, and what exactly that excuses.

A file of known discrepancies is TOML data, validated on reading:

    [[known]]
    id = "S1-empty-rank-low-precision"
    reason = "One sentence."
    link = "https://..."
    case = '{"batches":[2,0],"dtype":"float16"}'
    when = [{fact = "input_dtype", in = ["float16", "bfloat16"]}, {fact = "empty_ranks", at_least = 1}]
    properties = ["ending", "forward"]
    mechanism = "half-sums"                     # what it gives instead; needed for every property of numbers
    quantities = ["output", "running_var"]      # optional: prefixes of names of tensors, or of facts
    endings = ["died", "raised", "timeout"]     # optional: for the property `ending`
    observed = ["RuntimeError"]                 # optional: what is observed there (`Discrepancy.observed`)
    devices = ["cuda"]                          # optional: where it is so, among cpu and cuda
    torch_below = "2.13"                        # optional: the first version of torch without it

A file may `include = ["torch-native"]`, the entries of torch's native batch norm, which are shipped.

Rules
-----
- All clauses of `when` must hold: for the case; for one of its process groups (then only the ranks of that
  group are excused); for a step (then only what is seen in that step, and what follows from it); for a
  channel (then only that channel).
- An entry without a mechanism may excuse an ending, a refusal, collectives or a conversion, never numbers.
  One with a mechanism (`properties.mechanisms`) excuses what that predicts, by value, and no more.
- Everything else on such a case is judged as ever.
"""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from properties.case import Case, decode
from properties.case_checks import CaseError, one_line
from properties.mechanisms.closed_list import MECHANISMS
from verify.environment import version
from verify.known.case_facts import FACTS, Group

SHIPPED = {"torch-native": Path(__file__).parents[1] / "subjects" / "known" / "torch_native.toml"}
"""Files that come with the suite, by the name that a subject or a file gives for them."""
MAX_BYTES = 1 << 20
MAX_ELEMENTS = 1 << 22
"""Of a stored case, over all steps: its facts are read off its data."""
Channels = NDArray[np.bool_]
Extent = dict[tuple[int, int], Channels]
"""Where an entry may excuse something on a case: which channels, by rank and step."""

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "is": operator.eq,
    "in": lambda value, given: value in given,
    "at_least": operator.ge,
    "at_most": operator.le,
    "above": operator.gt,
    "below": operator.lt,
}
_RELEASE = re.compile(r"\d+")
_ORDERING = ("at_least", "at_most", "above", "below")
_ENDINGS = ("died", "raised", "timeout")
_DEVICES = ("cpu", "cuda")
_KEYS = {
    "id",
    "reason",
    "link",
    "case",
    "when",
    "properties",
    "mechanism",
    "quantities",
    "endings",
    "observed",
    "devices",
    "torch_below",
}
_WITHOUT_MECHANISM = ("ending", "refusal", "collectives", "conversion")


class KnownError(ValueError):
    """A file of known discrepancies that cannot be used; the message names the entry."""


class Clause(msgspec.Struct, frozen=True):
    """One condition: a fact, an operator, a value."""

    fact: str
    operator: str
    value: Any

    def holds(self, case: Case, group: Group, step: int) -> Any:
        """Return whether it holds; for a fact of channels, an array of shape (C,)."""
        value = FACTS[self.fact].read(case, group, step)
        if value is None:
            return False
        return OPERATORS[self.operator](value, self.value)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One known discrepancy, as the module's docstring has it."""

    id: str
    reason: str
    link: str
    case: Case
    when: tuple[Clause, ...]
    properties: tuple[str, ...]
    mechanism: str = ""
    quantities: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    devices: tuple[str, ...] = _DEVICES
    torch_below: tuple[int, ...] = ()

    def concerns(self, *, device: str, torch: str) -> bool:
        """Return whether it may be seen on `device`, cpu or cuda, with the version `torch`."""
        release = tuple(int(part) for part in _RELEASE.findall(torch.partition("+")[0])[:2])
        return device in self.devices and (not self.torch_below or release < self.torch_below)

    @property
    def deadly(self) -> bool:
        """Whether it may kill or hang a rank, so that few of its cases are run."""
        return "ending" in self.properties and (
            not self.endings or bool({"died", "timeout"} & set(self.endings))
        )


def extent(entry: Entry, case: Case) -> Extent:
    """Return the ranks, steps and channels of `case` that `entry` may excuse; empty if it does not apply."""
    found: Extent = {}
    by_scope = {
        scope: [clause for clause in entry.when if FACTS[clause.fact].scope == scope]
        for scope in ("case", "group", "step", "channel")
    }
    if not all(clause.holds(case, (), 0) for clause in by_scope["case"]):
        return found
    for group in case.process_groups:
        if not all(clause.holds(case, group, 0) for clause in by_scope["group"]):
            continue
        for step in range(len(case.steps)):
            if not all(clause.holds(case, group, step) for clause in by_scope["step"]):
                continue
            channels = np.ones(case.channels, np.bool_)
            for clause in by_scope["channel"]:
                channels &= clause.holds(case, group, step)
            if channels.any():
                found.update({(rank, step): channels for rank in group})
    return found


def concerned(entries: Iterable[Entry], *, device: str) -> tuple[Entry, ...]:
    """Return the entries that may be seen on `device`, cpu or cuda, with the torch that is installed."""
    release = version("torch")
    return tuple(entry for entry in entries if entry.concerns(device=device, torch=release))


def load(path: Path) -> tuple[Entry, ...]:
    """Return the entries of the file at `path`.

    Raises:
        KnownError: If it cannot be read, is no TOML, or an entry is not as expected.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KnownError(
            f"Expected a readable file of known discrepancies, but got {path}: {error}"
        ) from None
    if len(data) > MAX_BYTES:
        raise KnownError(
            f"Expected at most {MAX_BYTES} bytes of known discrepancies, but got {len(data)} bytes."
        )
    return parse(data.decode("utf-8", "replace"), source=str(path))


def parse(text: str, *, source: str = "known") -> tuple[Entry, ...]:
    """Return the entries that the TOML `text` describes; `source` names it in errors.

    Raises:
        KnownError: If it is no TOML, or an entry is not as expected.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib also raises plain ones, on numbers and nesting
        raise KnownError(f"Expected TOML, but got {source}: {one_line(str(error))}") from None
    tables = data.get("known", [])
    _require(
        set(data) <= {"known", "include"} and isinstance(tables, list),
        source,
        "only [[known]] tables, and what to include",
        keys=sorted(data),
    )
    included = _texts(data, "include", source)
    shipped = ", ".join(SHIPPED)
    _require(set(included) <= SHIPPED.keys(), source, f"names to include among {shipped}", include=included)
    entries = tuple(_entry(table, source) for table in tables)
    for name in included:
        entries += load(SHIPPED[name])
    ids = [entry.id for entry in entries]
    _require(len(set(ids)) == len(ids), source, "each id once", ids=ids)
    return entries


def _require(condition: object, where: str, expected: str, **given: object) -> None:
    if not condition:
        values = ", ".join(f"{name}={_shown(value)}" for name, value in given.items())
        raise KnownError(f"{where}: Expected {expected}, but got {values}.")


def _shown(value: object) -> str:
    try:
        return one_line(repr(value), 200)
    except RecursionError:
        return "a value that is nested too deeply"


def _entry(table: Any, source: str) -> Entry:
    _require(isinstance(table, dict), source, "a table", known=table)
    where = f"{source}, {one_line(str(table.get('id', 'an entry without id')), 60)}"
    unknown, missing = set(table) - _KEYS, {"id", "reason", "case", "when", "properties"} - set(table)
    _require(not unknown, where, f"keys among {', '.join(sorted(_KEYS))}", keys=sorted(unknown))
    _require(not missing, where, "id, reason, case, when and properties", missing=sorted(missing))
    for name in ("id", "reason", "case", "link"):
        text = table.get(name, "")
        _require(
            isinstance(text, str) and text.isprintable(),
            where,
            f"a text as {name}, in one line",
            **{name: text},
        )
    _require(table["id"] and table["reason"], where, "an id and a reason", id=table["id"])
    try:
        case = decode(table["case"])
    except CaseError as error:
        raise KnownError(f"{where}: {error}") from None
    most = f"a case of at most {MAX_ELEMENTS} elements"
    _require(case.elements <= MAX_ELEMENTS, where, most, elements=case.elements)
    _require(isinstance(table["when"], list) and table["when"], where, "clauses", when=table["when"])
    endings = _texts(table, "endings", where)
    _require(set(endings) <= set(_ENDINGS), where, f"endings among {', '.join(_ENDINGS)}", endings=endings)
    properties = _texts(table, "properties", where)
    _require(properties, where, "at least one property", properties=properties)
    mechanism = table.get("mechanism", "")
    _require(
        mechanism in ("", *MECHANISMS),
        where,
        f"a mechanism among {', '.join(MECHANISMS)}",
        mechanism=mechanism,
    )
    numbers = [name for name in properties if name not in _WITHOUT_MECHANISM]
    without = ", ".join(_WITHOUT_MECHANISM)
    _require(
        mechanism or not numbers, where, f"a mechanism, or no property beside {without}", properties=numbers
    )
    devices = _texts(table, "devices", where)
    _require(set(devices) <= set(_DEVICES), where, f"devices among {', '.join(_DEVICES)}", devices=devices)
    below = table.get("torch_below", "")
    _require(
        isinstance(below, str) and (not below or re.fullmatch(r"\d+\.\d+", below)),
        where,
        'a version of torch such as "2.13"',
        torch_below=below,
    )
    entry = Entry(
        id=table["id"],
        reason=table["reason"],
        link=table.get("link", ""),
        case=case,
        when=tuple(_clause(clause, where) for clause in table["when"]),
        properties=properties,
        mechanism=mechanism,
        quantities=_texts(table, "quantities", where),
        endings=endings,
        observed=_texts(table, "observed", where),
        devices=devices or _DEVICES,
        torch_below=tuple(map(int, _RELEASE.findall(below))),
    )
    try:
        own = extent(entry, case)
    except (TypeError, OverflowError) as error:  # a text compared with a number, or a number beyond floats
        raise KnownError(f"{where}: Expected values that can be compared with their facts: {error}") from None
    _require(own, where, "a case that meets its own clauses", case=table["case"])
    return entry


def _texts(table: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = table.get(name, [])
    _require(
        isinstance(values, list) and all(isinstance(value, str) for value in values),
        where,
        f"a list of texts as {name}",
        **{name: values},
    )
    return tuple(values)


def _clause(data: Any, where: str) -> Clause:
    _require(isinstance(data, dict) and len(data) == 2, where, "a fact and one operator", clause=data)
    fact = data.get("fact")
    _require(isinstance(fact, str) and fact in FACTS, where, f"a fact among {', '.join(FACTS)}", fact=fact)
    name = next((key for key in data if key != "fact"), "")
    _require(name in OPERATORS, where, f"an operator among {', '.join(OPERATORS)}", operator=name)
    value = data[name]
    if name == "in":
        _require(isinstance(value, list), where, "a list", **{"in": value})
        value = tuple(value)
    if name in _ORDERING:
        _require(
            isinstance(value, int | float) and not isinstance(value, bool), where, "a number", **{name: value}
        )
    if FACTS[fact].scope == "channel":
        _require(name in _ORDERING, where, "at_least, at_most, above or below for a channel", operator=name)
    return Clause(fact, name, value)

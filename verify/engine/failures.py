"""The failures of a campaign: each kind is told once, with the evidence of all that was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from properties.case import Case, encode
from properties.judge.catalogue import PROPERTIES
from verify.events import Event, FailureMinimised
from verify.known.entries import Entry
from verify.report.explain import Occurrence, explain
from verify.report.resemblance import Diagnoses, Likeness, evidence_of
from verify.result import ALWAYS, Failure, History, PropertyResult
from verify.subject import Subject
from verify.trial import Trial

MAX_EXCEPTIONS = 5
"""Kinds of exceptions told of a property: each is minimised, and a subject may raise in very many ways."""
SIMPLE_BYTES = 40
"""Of JSON: a case this short differs in a field or two from the simplest, whether or not the time was enough
to lower its sizes further."""


def property_of(kind: str) -> str:
    """Return the id of the property that a kind of failure violates; see `Trial.failures`."""
    return kind.partition(" ")[0]


def root_first(failures: Iterable[Failure], properties: dict[str, PropertyResult]) -> tuple[Failure, ...]:
    """Return `failures` so that what others follow from comes before them.

    In the order of the catalogue: output, buffers, gradients, form, conduct. A subject that hangs, dies or
    raises on more cases than it gives wrong numbers on is told so first, and outputs that are wrong by the
    buffers come after these.

    Args:
        failures: In any order.
        properties: Counts by property.
    """
    order = list(PROPERTIES)
    violated = {name: found.violated for name, found in properties.items()}
    wrong = max((number for name, number in violated.items() if name != "ending"), default=0)
    if violated.get("ending", 0) > wrong:
        order.insert(0, "ending")
    buffers = order.index("running_var")

    def place(failure: Failure) -> tuple[int, bool]:
        by_buffers = failure.property == "forward" and failure.stage == "buffers"
        return (buffers, True) if by_buffers else (order.index(failure.property), False)

    return tuple(sorted(failures, key=place))


class Failures:
    """What was told of one subject.

    Args:
        subject: The subject.
        diagnoses: What names causes; None for no diagnosis.
        emit: Takes an event for each failure that is told.
        room_for: Whether what takes so many seconds may still begin.
        native: Which discrepancies of torch's native batch norm explain a property's violation.

    Attributes:
        told: By kind of failure.
    """

    def __init__(
        self,
        subject: Subject,
        diagnoses: Diagnoses | None,
        *,
        emit: Callable[[Event], None],
        room_for: Callable[[float], bool],
        native: Callable[[Trial, str], Sequence[Entry]] = lambda trial, property_id: (),
    ) -> None:
        self.told: dict[str, Failure] = {}
        self._subject = subject
        self._evidence = evidence_of(subject, diagnoses, room_for=room_for)
        self._emit = emit
        self._native = native
        self._cases: Counter[str] = Counter()
        self._occurrences: dict[str, Occurrence] = {}

    def fresh(self, trial: Trial, *, first: Collection[str] = ()) -> list[str]:
        """Return the kinds of failure that `trial` is the first to show, those of `first` first."""
        kinds = [kind for kind in trial.failures if self._is_fresh(kind)]
        return sorted(kinds, key=lambda kind: property_of(kind) not in first)

    def count(self, trial: Trial) -> None:
        """Count the kinds of failure of a case that counts."""
        self._cases.update(trial.failures)
        self._evidence.add_further(trial)

    def _is_fresh(self, kind: str) -> bool:
        property_id, *how = kind.split()
        if how[:1] != ["raised"]:
            return kind not in self.told
        raised = sum(told.startswith(f"{property_id} raised ") for told in self.told)
        return kind not in self.told and raised < MAX_EXCEPTIONS

    @property
    def counted(self) -> tuple[Failure, ...]:
        """What was told, with how many cases showed it."""
        return tuple(
            msgspec.structs.replace(failure, cases=self._cases[kind]) for kind, failure in self.told.items()
        )

    def conclude(
        self,
        kind: str,
        trial: Trial,
        *,
        drawn: Trial | None,
        found: str,
        minimised: bool,
        repeats: bool,
        history: History = ALWAYS,
    ) -> None:
        """Tell every kind of failure that the smallest case of `kind` is the first to show, that one first.

        Args:
            kind: What was minimised.
            trial: Of the smallest case.
            drawn: Of the case as drawn.
            found: Id of the case as drawn.
            minimised: Minimising came to its end.
            repeats: The smallest case failed again.
            history: When it fails.
        """
        if drawn is not None:
            self._evidence.add(drawn, minimal=False)
        # A hang is never minimised to the end: the bold candidates have been tried all the same.
        simple = len(encode(trial.case)) <= SIMPLE_BYTES
        ended = minimised or property_of(kind) == "ending" or simple
        # What a case needs tells nothing where it needs what ran before it.
        self._evidence.add(trial, minimal=repeats and ended and not history.when)
        for other in dict.fromkeys((kind, *trial.failures)):
            if self._is_fresh(other):
                self._tell(other, trial, found=found, minimised=minimised, repeats=repeats, history=history)

    def tell_as_is(self, kind: str, trial: Trial, *, found: Case) -> None:
        """Tell a failure by the case that showed it, unless it was told."""
        if self._is_fresh(kind):
            self._evidence.add(trial, minimal=False)
            self._tell(kind, trial, found=found.id, minimised=False, repeats=True)

    def name_causes(self) -> None:
        """Name the causes again, now that all failures together narrow them."""
        for kind, failure in self.told.items():
            likeness = self._evidence.likeness(property_of(kind))
            if not likeness.error:
                _, text = explain(replace(self._occurrences[kind], likeness=likeness))
                self.told[kind] = msgspec.structs.replace(failure, text=text, **_named(likeness))

    def _tell(
        self,
        kind: str,
        trial: Trial,
        *,
        found: str,
        minimised: bool,
        repeats: bool,
        history: History = ALWAYS,
    ) -> None:
        property_id = property_of(kind)
        likeness = self._evidence.likeness(property_id)
        occurrence = Occurrence(
            property_id=property_id,
            trial=trial,
            subject=self._subject,
            minimal=minimised,
            repeats=repeats,
            history=history,
            likeness=likeness,
            native=tuple(self._native(trial, property_id)),
        )
        self._occurrences[kind] = occurrence
        discrepancy, text = explain(occurrence)
        failure = Failure(
            property=property_id,
            case=trial.case,
            found=found,
            minimised=minimised,
            repeats=repeats,
            history=history,
            discrepancy=discrepancy,
            text=text,
            **_named(likeness),
        )
        self.told[kind] = failure
        self._emit(FailureMinimised(subject=self._subject.spec, failure=failure))


def _named(likeness: Likeness) -> dict[str, Any]:
    """Return the fields of a failure that say what it resembles."""
    convention = dict(likeness.convention)
    return {"resembles": likeness.names, "stage": likeness.stage[0], "convention": convention}

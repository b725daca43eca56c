"""Diagnosis: which known causes predict everything that was observed.

Evidence is a few trials of one subject: cases with what the ranks gave back and which properties that
violates. For each part of a batch norm (`properties.diagnosis.causes`) the causes are asked for a prediction
of every trial, violated there or not; those that are never contradicted survive, most specific first.

Rules
-----
- A cause is never more than a resemblance: another fault may predict the same.
- What is named changes something: without it the evidence is contradicted, and with it at least one element
  that is wrong is predicted. A prediction that is undecided wherever something is wrong explains nothing.
- A part that is violated and that no cause predicts leaves everything after it unexplained, too.
- What is no matter of numbers (a hang, a refusal, a wrong dtype) is told by what the minimal case needs
  (`properties.diagnosis.symptoms`).
- A convention explains everything or nothing: under the changed contract no property is violated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.diagnosis import slips
from properties.diagnosis.causes import (
    AFFINE,
    BACKWARD,
    BUFFERS,
    BY_ID,
    CONSISTENT,
    COUNT,
    FORWARD,
    PROPERTIES_OF,
    SWAPPED,
    Cause,
    Part,
)
from properties.diagnosis.conventions import CONVENTION_CLASSES, CONVENTIONS, FORMS
from properties.diagnosis.prediction import predict
from properties.diagnosis.slip_search import Scoped, SlipSearch, finite_alike, named
from properties.diagnosis.stages import WORDS as STAGES
from properties.diagnosis.stages import Stage, first_wrong
from properties.diagnosis.symptoms import BESIDE, CLASSES, WORDS, symptoms
from properties.diagnosis.variant import RIGHT, Variant
from properties.domain import Contract, Domain, Grade
from properties.expectation.expect import expect
from properties.expectation.expected import Expected
from properties.judge.bounded import beyond, match
from properties.judge.catalogue import judge
from properties.observation import Observation
from properties.values.period import is_large
from properties.verdict import Outcome

EVERYTHING = Domain()
MAX_ELEMENTS = 100_000
SLIP_SECONDS = 12.0
"""Of computing, after which no further slip is asked: a net, since all take one to three."""
NUMERIC = tuple(name for names in PROPERTIES_OF.values() for name in names)
QUANTITIES = {"forward": "output"}
"""Names of the quantities of properties that bear another name than theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One trial of the subject.

    Attributes:
        violated: Ids of the properties that it violates.
        minimal: It is what minimising ended with.
    """

    case: Case
    observation: Observation
    violated: tuple[str, ...]
    minimal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What the evidence resembles.

    Attributes:
        causes: Ids by the property that they explain, most specific first.
        convention: Settings of a contract under which nothing is violated; empty if there are none.
        forms: Of a property alone that holds under another setting of the contract, that setting.
        stages: What is wrong first where a property is violated, by the property; see
            `properties.diagnosis.stages`.
    """

    causes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    convention: dict[str, str] = field(default_factory=dict)
    forms: dict[str, tuple[str, str]] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)

    def of(self, property_id: str) -> tuple[str, ...]:
        """Return the causes of one property's violations."""
        return self.causes.get(property_id, ())


def classes_of(name: str) -> tuple[int, ...]:
    """Return the fault classes that a cause or symptom belongs to; none if there is no such name."""
    if name in BY_ID:
        return BY_ID[name].classes
    return slips.CLASSES.get(name) or CLASSES.get(name, ())


def classes_of_convention(convention: dict[str, str]) -> tuple[int, ...]:
    """Return the fault classes that a convention belongs to."""
    return tuple(number for key in convention for number in CONVENTION_CLASSES[key])


def stage_words(stage: str) -> str:
    """Return what a stage (`properties.diagnosis.stages.Stage`) is called in a sentence."""
    return STAGES[stage]


def words_of(name: str) -> str:
    """Return what a subject does that has the cause or symptom `name`."""
    return BY_ID[name].words if name in BY_ID else slips.WORDS.get(name) or WORDS[name]


def diagnose(
    evidence: Sequence[Evidence],
    contract: Contract,
    grade: Grade,
    *,
    device: str = "cpu",
    domain: Domain = EVERYTHING,
    further: Sequence[Evidence] = (),
    seconds: float = 8.0,
    clock: Callable[[], float] = time.process_time,
) -> Diagnosis:
    """Return what the violations in `evidence` resemble.

    Args:
        evidence: Trials of one subject, at least one of which violates a property.
        contract: The convention that they were judged by.
        grade: The error model that they were judged by.
        device: cpu or cuda.
        domain: Of the subject: what it forces on every case is no symptom.
        further: More of it for symptoms and slips, which need no program: a cause compiles one for each size.
        seconds: Of computing, after which no further cause is asked.
        clock: Seconds of this process's computing, which a crowded machine does not use up.
    """
    causes = symptoms(evidence, domain, further)
    right = {
        one.case: expect(one.case, contract, grade, device=device)
        for one in evidence
        if not is_large(one.case)
    }
    stages, forms = dict(_stages(evidence, right)), dict(_forms(evidence, contract, right))
    numeric = [one for one in evidence if _predictable(one.case)]
    if not any(set(one.violated) & set(NUMERIC) for one in numeric):
        return Diagnosis(causes=causes, forms=forms, stages=stages)
    for one in numeric:  # compiles what has not been compiled, outside of the time
        predict(one.case, contract, grade, device=device, variant=RIGHT)
    search = _Search(
        numeric, contract, grade, right=right, device=device, until=clock() + seconds, clock=clock
    )
    # "All discrepancies vanish" must be true of the trials that have no prediction, too.
    convention = search.convention() if len(numeric) == len(evidence) else {}
    found = dict(search.parts())
    stages |= {name: stage for name, names in found.items() if (stage := BY_ID[names[0]].stage)}
    if not convention and not _violated(numeric) <= found.keys():
        more = [one for one in further if _predictable(one.case) and not is_large(one.case)]
        right |= {one.case: expect(one.case, contract, grade, device=device) for one in more}
        lines = SlipSearch([*numeric, *more], right, contract, until=clock() + SLIP_SECONDS, clock=clock)
        for name, (names, stage) in dict(
            _slips(lines, _violated(numeric) - found.keys(), numeric, contract)
        ).items():
            found[name], stages[name] = names, stage
    for name, names in found.items():
        beside = tuple(one for one in causes.get(name, ()) if one in BESIDE)
        causes[name] = (*names, *beside)
    return Diagnosis(causes=causes, convention=convention, forms=forms, stages=stages)


def _violated(evidence: Sequence[Evidence]) -> set[str]:
    return {name for one in evidence for name in one.violated} & set(NUMERIC)


def _slips(
    search: SlipSearch, names: set[str], evidence: Sequence[Evidence], contract: Contract
) -> Iterator[tuple[str, tuple[tuple[str, ...], Stage]]]:
    """Yield each of the properties that slips explain with them, and the stage that the first is in.

    What a non-finite input does not reach is explained by a slip that leaves it out.
    """
    first: tuple[Scoped, ...] = ()
    for part, found in search.parts():
        first = first or found
        for name in PROPERTIES_OF[part]:
            if name in names:
                yield name, (named(found), found[0].slip.stage)
    passing = [one for one in evidence if "nonfinite" in one.violated and not is_large(one.case)]
    alike = tuple(
        one for one in first if passing and all(finite_alike(one, seen, contract) for seen in passing)
    )
    if alike:
        yield "nonfinite", (named(alike), alike[0].slip.stage)


def _forms(
    evidence: Sequence[Evidence], contract: Contract, right: dict[Case, Expected]
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each violated property that holds in all the evidence under another setting of its own."""
    for name, (key, setting) in FORMS.items():
        violating = [one for one in evidence if name in one.violated]
        other = msgspec.structs.replace(contract, **{key: False if setting == "no" else setting})
        if violating and all(
            one.case in right
            and all(
                verdict.outcome is not Outcome.VIOLATED
                for verdict in judge(one.case, one.observation, right[one.case], other, only=(name,))
            )
            for one in violating
        ):
            yield name, (key, setting)


def _stages(evidence: Sequence[Evidence], right: dict[Case, Expected]) -> Iterator[tuple[str, Stage]]:
    """Yield each violated property with what is wrong first where it is, if anything tells."""
    for name in dict.fromkeys(name for one in evidence for name in one.violated):
        violating = [one for one in evidence if name in one.violated and one.case in right]
        found = first_wrong(violating, [right[one.case] for one in violating])
        if found and not (found.startswith("backward") and name == "forward"):  # of an earlier step
            yield name, found


def _predictable(case: Case) -> bool:
    return not case.wrong and not case.ragged_grad and case.elements <= MAX_ELEMENTS * len(case.steps)


class _Search:
    """The search for causes that no trial contradicts."""

    def __init__(
        self,
        evidence: Sequence[Evidence],
        contract: Contract,
        grade: Grade,
        *,
        right: dict[Case, Expected],
        device: str,
        until: float,
        clock: Callable[[], float],
    ) -> None:
        self._evidence, self._contract, self._grade, self._device = evidence, contract, grade, device
        self._right = right
        self._until, self._clock = until, clock
        self._wrong: dict[tuple[Case, str], dict[tuple[str, int], NDArray[np.bool_]]] = {}

    def convention(self) -> dict[str, str]:
        """Return the changes of the contract under which no trial violates anything."""
        for changes in CONVENTIONS:
            contract = msgspec.structs.replace(self._contract, **changes)
            if contract != self._contract and all(self._holds(one, contract) for one in self._evidence):
                return changes
        return {}

    def _holds(self, one: Evidence, contract: Contract) -> bool:
        expected = expect(one.case, contract, self._grade, device=self._device)
        verdicts = judge(one.case, one.observation, expected, contract)
        return all(verdict.outcome is not Outcome.VIOLATED for verdict in verdicts)

    def parts(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield each violated property with the causes that explain it."""
        base = RIGHT
        count = self._surviving("count", COUNT, base) if self._violated("count") else ()
        yield from self._told("count", count)
        forward: tuple[Cause, ...] = ()
        buffers: tuple[Cause, ...] = ()
        if self._violated("forward"):
            forward, buffers = self._normalising(base)
            if not forward and not buffers:
                return
        yield from self._told("forward", forward or buffers)
        for cause in (*forward[:1], *buffers[:1]):
            base = cause.variant(base)
        if self._violated("buffers") and not buffers and not self._fits("buffers", base):
            buffers = self._surviving("buffers", BUFFERS, base) or self._hidden("buffers")
            base = buffers[0].variant(base) if buffers else base
            if not buffers:
                return
        yield from self._told("buffers", buffers or forward)
        earlier = forward or buffers
        yield from self._told("backward", self._gradients("backward", BACKWARD, base, earlier))
        yield from self._told("affine", self._gradients("affine", AFFINE, base, earlier))

    def _normalising(self, base: Variant) -> tuple[tuple[Cause, ...], tuple[Cause, ...]]:
        """Return what explains the outputs, in the forward or, where evaluations show it, in the buffers.

        What only widens a bound is asked last.
        """
        sharp = tuple(cause for cause in FORWARD if not cause.floor)
        if forward := self._surviving("forward", sharp, base):
            return forward, ()
        if any(step.mode == "eval" for one in self._evidence for step in one.case.steps):
            found = self._surviving("forward", BUFFERS, base)
            if buffers := tuple(one for one in found if self._fits("buffers", one.variant(base))):
                return (), buffers
        if not self._violated("buffers"):  # what computes less precisely tracks less precisely
            return (), ()
        return self._surviving("forward", tuple(cause for cause in FORWARD if cause.floor), base), ()

    def _gradients(
        self, part: Part, causes: tuple[Cause, ...], base: Variant, earlier: tuple[Cause, ...]
    ) -> tuple[Cause, ...]:
        """Return what explains a gradient: what explains the forward or the buffers, if it follows from that.

        A cause of its own is asked for only where it does not: it would change nothing.
        """
        if not self._violated(part):
            return ()
        if earlier and any(
            self._fits(part, one) for one in (base, CONSISTENT.variant(base), SWAPPED.variant(base))
        ):
            return earlier
        if found := self._surviving(part, causes, base):
            return (*found, *earlier)
        return () if earlier else self._hidden(part)

    def _hidden(self, part: Part) -> tuple[Cause, ...]:
        """Return causes in the forward that only `part` shows: the rounding of the outputs hides them."""
        sharp = tuple(cause for cause in FORWARD if not cause.floor or part == "buffers")
        found = self._surviving(part, sharp, RIGHT)
        return tuple(cause for cause in found if self._fits("forward", cause.variant(RIGHT)))

    def _told(self, part: Part, causes: tuple[Cause, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
        for name in PROPERTIES_OF[part]:
            if causes and any(name in one.violated for one in self._evidence):
                yield name, tuple(dict.fromkeys(cause.id for cause in causes))

    def _violated(self, part: Part) -> bool:
        return any(set(one.violated) & set(PROPERTIES_OF[part]) for one in self._evidence)

    def _surviving(self, part: Part, causes: tuple[Cause, ...], base: Variant) -> tuple[Cause, ...]:
        found = []
        for cause in causes:
            if self._clock() > self._until:
                break
            if self._fits(part, cause.variant(base), floor=cause.floor):
                found.append(cause)
        return tuple(found)

    def _fits(self, part: Part, variant: Variant, *, floor: float = 0.0) -> bool:
        """Return whether `variant` predicts what every trial observed of `part`."""
        reached = -1.0
        for one in self._evidence:
            ratio = self._ratio(one, part, variant)
            if ratio is None:
                return False
            reached = max(reached, ratio)
        return reached >= floor or not self._violated(part)

    def _ratio(self, one: Evidence, part: Part, variant: Variant) -> float | None:
        """Return the greatest ratio under the prediction; None if the trial contradicts it.

        It does, too, if the prediction leaves undecided all that is wrong. It is -1 where the trial violates
        nothing of the part.
        """
        names = PROPERTIES_OF[part]
        predicted = predict(one.case, self._contract, self._grade, device=self._device, variant=variant)
        greatest = -1.0
        for verdict in judge(one.case, one.observation, predicted, self._contract, only=names):
            if verdict.outcome is Outcome.VIOLATED:
                return None
            if verdict.property in one.violated:
                if not self._decides(one, verdict.property, predicted):
                    return None
                if verdict.outcome is Outcome.HOLDS:
                    greatest = max(greatest, verdict.max_ratio)
        return greatest

    def _decides(self, one: Evidence, name: str, predicted: Expected) -> bool:
        """Whether `predicted` decides an element of a violated property that is wrong, if any is."""
        quantity = QUANTITIES.get(name, name)
        wrong = self._beyond(one, quantity)
        matching = match(quantity, case=one.case, observation=one.observation, expected=predicted)
        places = [(wrong[key], pair) for pair in matching.pairs if (key := (pair.name, pair.rank)) in wrong]
        return not wrong or any(np.isfinite(pair.interval.bound[mask]).any() for mask, pair in places)

    def _beyond(self, one: Evidence, quantity: str) -> dict[tuple[str, int], NDArray[np.bool_]]:
        """Return which elements of the quantity are wrong, by name and rank."""
        key = (one.case, quantity)
        if key not in self._wrong:
            right = self._right[one.case]
            matching = match(quantity, case=one.case, observation=one.observation, expected=right)
            self._wrong[key] = beyond(matching)
        return self._wrong[key]

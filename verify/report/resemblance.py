"""A evidence: the trials of one subject that tell most about its failures, and what they resemble together.

A failure in the diagnosis itself costs the hint, never the verdict: it is told in place of the hint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from properties.case import Case
from properties.domain import Contract, Domain, Grade
from properties.observation import Observation
from verify.subject import Subject
from verify.trial import Trial

MAX_TRIALS = 8
MAX_FURTHER, FURTHER_ELEMENTS = 12, 20_000
"""Further trials, and elements of each: what they are compared with costs little."""
DIAGNOSIS_SECONDS = 6.0
"""That a diagnosis may take, most of which it compiles; where one took longer, the next may, too."""


class Diagnoses(Protocol):
    """The part of `properties.diagnosis.diagnose` that is needed here, so that tests can replace it."""

    def diagnose(
        self,
        evidence: Any,
        contract: Contract,
        grade: Grade,
        *,
        device: str,
        domain: Domain,
        further: Any = (),
    ) -> Any:
        """Return what the evidence resembles."""

    def words_of(self, name: str) -> str:
        """Return what a subject does that has the cause `name`."""

    def stage_words(self, stage: str) -> str:
        """Return what a stage is called in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One trial, as the diagnosis sees it (`properties.diagnosis.diagnose.Evidence`)."""

    case: Case
    observation: Observation
    violated: tuple[str, ...]
    minimal: bool

    @property
    def elements(self) -> int:
        """Elements of the input over all ranks and steps."""
        return self.case.elements


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a failure resembles.

    Attributes:
        causes: (id, what the subject does), most specific first.
        convention: Settings of a contract under which nothing is violated.
        form: The setting of a contract under which the property alone holds; empty if there is none.
        trials: How many trials the causes were compared with.
        stage: What is wrong first, by its name and in words; empty if nothing tells.
        error: Why the diagnosis failed, if it did.
    """

    causes: tuple[tuple[str, str], ...] = ()
    convention: tuple[tuple[str, str], ...] = ()
    form: tuple[str, str] | tuple[()] = ()
    trials: int = 0
    stage: tuple[str, str] = ("", "")
    error: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The causes' ids."""
        return tuple(name for name, _ in self.causes)


@dataclass(slots=True, kw_only=True)
class Resemblance:
    """The evidence of one campaign.

    Attributes:
        diagnoses: `properties.diagnosis.diagnose`, or None for no diagnosis.
        contract, grade, device, domain: Of the subject.
        room_for: Whether what takes so many seconds may still begin.
    """

    diagnoses: Diagnoses | None
    contract: Contract
    grade: Grade
    device: str
    domain: Domain
    room_for: Callable[[float], bool] = lambda seconds: True
    _seen: list[Seen] = field(default_factory=list)
    _further: list[Seen] = field(default_factory=list)
    _latest: Any = None
    _error: str = ""
    _longest: float = DIAGNOSIS_SECONDS

    def add(self, trial: Trial, *, minimal: bool) -> None:
        """Add a trial that violates a property; a minimal one tells what its failure needs."""
        if trial.observation is None or not trial.violated:
            return
        if any(one.case == trial.case and one.minimal >= minimal for one in self._seen):
            return
        self._seen.append(
            Seen(case=trial.case, observation=trial.observation, violated=trial.violated, minimal=minimal)
        )
        drawn = [one for one in self._seen if not one.minimal]
        if len(self._seen) > MAX_TRIALS and drawn:
            self._seen.remove(max(drawn, key=lambda one: one.elements))
        self._latest = None

    def add_further(self, trial: Trial) -> None:
        """Add a trial that violates a property to those that causes are narrowed by in the end."""
        if trial.observation is None or not trial.violated or trial.case.elements > FURTHER_ELEMENTS:
            return
        if len(self._further) < MAX_FURTHER:
            self._further.append(
                Seen(case=trial.case, observation=trial.observation, violated=trial.violated, minimal=False)
            )
            self._latest = None

    def likeness(self, property_id: str) -> Likeness:
        """Return what the violations of `property_id` resemble by all that was seen."""
        if self.diagnoses is None or not self._seen:
            return Likeness()
        if self._latest is None:
            if not self.room_for(self._longest):
                return Likeness(error="there was no time left for it")
            self._diagnose()
        if self._latest is None:
            return Likeness(error=self._error)
        names, stage = self._latest.of(property_id), self._latest.stages.get(property_id, "")
        return Likeness(
            causes=tuple((name, self.diagnoses.words_of(name)) for name in names),
            convention=tuple(self._latest.convention.items()),
            form=self._latest.forms.get(property_id, ()),
            trials=len(self._seen),
            stage=(stage, self.diagnoses.stage_words(stage)) if stage else ("", ""),
        )

    def _diagnose(self) -> None:
        assert self.diagnoses is not None
        began = time.monotonic()
        try:
            self._latest = self.diagnoses.diagnose(
                self._seen,
                self.contract,
                self.grade,
                device=self.device,
                domain=self.domain,
                further=[one for one in self._further if one.case not in {seen.case for seen in self._seen}],
            )
        except Exception as error:  # a hint that fails must not cost the verdict
            self._error = f"{type(error).__name__}: {error}"
        self._longest = max(self._longest, time.monotonic() - began)


def evidence_of(
    subject: Subject, diagnoses: Diagnoses | None, *, room_for: Callable[[float], bool] = lambda seconds: True
) -> Resemblance:
    """Return the evidence, none yet, of `subject`."""
    promise = subject.promise
    return Resemblance(
        diagnoses=diagnoses,
        contract=promise.contract,
        grade=promise.grade,
        device=subject.device,
        domain=promise.domain,
        room_for=room_for,
    )

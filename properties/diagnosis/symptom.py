"""A symptom: a condition of failures, and when it is none because the subject's domain has nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from properties.case import Case
from properties.case_checks import CaseError
from properties.domain import Domain
from properties.generation.membership import objections
from properties.observation import Observation


class Seen(Protocol):
    """The part of `properties.diagnosis.diagnose.Evidence` that is needed here."""

    @property
    def case(self) -> Case: ...  # noqa: D102

    @property
    def observation(self) -> Observation: ...  # noqa: D102

    @property
    def violated(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def minimal(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """A condition of failures of some properties.

    Attributes:
        id: Stable name.
        words: What the subject does, as a clause without a subject.
        classes: Fault classes that it belongs to.
        properties: Of which it explains a violation.
        needs: Whether a minimal failing case shows it.
        alone: It is told only where nothing above it in the table is.
        beside: It is told beside a cause that numbers tell, too.
        without: Fields of a case that does not show it, in place of its own: where the subject's domain has
            no such case, what it shows is no condition of the failure.
    """

    id: str
    words: str
    classes: tuple[int, ...]
    properties: tuple[str, ...]
    needs: Callable[[Seen], bool]
    alone: bool = False
    beside: bool = False
    without: Mapping[str, Any] = field(default_factory=dict)

    def forced(self, case: Case, domain: Domain) -> bool:
        """Whether `domain` has no case that is like `case` and does not show it."""
        if not self.without:
            return False
        try:
            other = msgspec.structs.replace(case, **self.without)
        except CaseError:
            return False
        return bool(objections(domain, other)) and not objections(domain, case)

"""Stand-ins for the parts of a campaign: ranks, reference, judge, and hand-made observations."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st

from properties.case import Case
from properties.domain import Domain
from properties.expectation.expected import Expected, Interval
from properties.observation import Observation, RankObservation, Tensor
from properties.verdict import Discrepancy, Outcome, Verdict
from verify.engine.examiner import Examiner, Machinery
from verify.events import Event
from verify.ranks.limit import unlimited
from verify.subject import Subject

Rules = Mapping[str, Callable[[Case], bool]]


def returned(case: Case) -> Observation:
    """Return an observation of ranks that returned nothing but that they did."""
    return Observation(
        ranks=tuple(RankObservation(rank=rank, ending="returned") for rank in range(case.world_size))
    )


def ended(case: Case, ending: str, **more: Any) -> Observation:
    """Return an observation in which rank 0 ended as told and the others were stopped."""
    first = RankObservation(rank=0, ending=ending, **more)
    rest = (RankObservation(rank=rank, ending="stopped") for rank in range(1, case.world_size))
    return Observation(ranks=(first, *rest))


def tensor(values: Any, dtype: str = "float32") -> Tensor:
    """Return an observed tensor with these values."""
    return Tensor(dtype=dtype, array=np.asarray(values, dtype))


def interval(values: Any, bound: Any) -> Interval:
    """Return expected values with a bound, one for all or one each."""
    value = np.asarray(values, np.float64)
    return Interval(
        value=value,
        bound=np.broadcast_to(np.asarray(bound, np.float64), value.shape).copy(),
        overflows=np.zeros(value.shape, np.bool_),
    )


class FakeRanks:
    """A rank pool that answers from a function; counts its runs."""

    most_in_flight = 2

    def __init__(self, behave: Callable[[Case], Observation] = returned) -> None:
        self.timeout = 10.0
        self.left = unlimited
        self.timeouts: list[float] = []
        self.cases: list[Case] = []
        self.renewed = 0
        self._behave = behave
        self._waiting: deque[FakeTicket] = deque()

    def submit(
        self,
        spec: str,
        case: Case,
        *,
        inplace: bool = False,
        seconds: float | None = None,
        share: float = 1.0,
    ) -> FakeTicket:
        assert spec
        assert not inplace
        assert len(self._waiting) < self.most_in_flight
        self.timeouts.append((seconds or self.timeout) * share)
        self.cases.append(case)
        self._waiting.append(ticket := FakeTicket(self, case))
        return ticket

    def renew(self, spec: str) -> None:
        assert spec
        assert not self._waiting
        self.renewed += 1

    def answer(self, ticket: FakeTicket) -> Observation:
        assert self._waiting.popleft() is ticket  # the first is asked first
        return self._behave(ticket.case)


@dataclass(eq=False)
class FakeTicket:
    """A case that was submitted."""

    ranks: FakeRanks
    case: Case

    def result(self) -> Observation:
        return self.ranks.answer(self)


def broken(property_id: str, **more: Any) -> Verdict:
    """Return a violated verdict with one discrepancy."""
    found = Discrepancy(
        quantity="output.0", rank=0, index=(0, 0), observed=2.0, expected=1.0, bound=0.5, ratio=2.0, **more
    )
    return Verdict(
        property=property_id, outcome=Outcome.VIOLATED, elements=4, max_ratio=2.0, discrepancies=(found,)
    )


def judge_by(rules: Rules) -> Any:
    """Return a judge for which each property is violated where its rule says so."""

    def judge(
        case: Case, observation: Any, expected: Any, contract: Any, *, only: Collection[str] | None
    ) -> tuple[Verdict, ...]:
        del expected, contract
        raised = observation is not None and observation.ranks[0].ending == "raised"
        ending = "raised" if raised else "timeout"
        return tuple(
            broken(name, ending=ending if name == "ending" else "")
            if rule(case)
            else Verdict(property=name, outcome=Outcome.HOLDS, elements=4, max_ratio=0.5)
            for name, rule in rules.items()
            if only is None or name in only
        )

    return judge


def small_cases(domain: Domain) -> st.SearchStrategy[Case]:
    """Return a strategy of small cases, without regard to the domain."""
    del domain
    return st.builds(
        Case,
        batches=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
        channels=st.integers(1, 9),
        seed=st.integers(0, 2**32),
    )


def parts(rules: Rules, **more: Any) -> Machinery:
    """Return machinery that judges by `rules`; `strategy` stands for its cases."""
    if "strategy" in more:
        more["cases"] = more.pop("strategy")
    made = Machinery(
        expect=lambda case, contract, grade, *, device: Expected(grade=grade),
        judge=judge_by(rules),
        cases=small_cases,
        objections=lambda domain, case: (),
        excluded_share=lambda domain: 0.0,
    )
    return Machinery(**{name: more.get(name, getattr(made, name)) for name in made.__slots__})


def examiner(
    rules: Rules, *, ranks: FakeRanks | None = None, subject: Subject | None = None, **more: Any
) -> Examiner:
    """Return an examiner over fake parts."""
    return Examiner(
        subject=subject or Subject(spec="fake:Subject", label="fake:Subject"),
        ranks=ranks or FakeRanks(),
        parts=parts(rules, **more),
    )


class Heard(list[Event]):
    """A handler that keeps the events."""

    def handle(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[msgspec.Struct]) -> list[Any]:
        """Return the events of one type."""
        return [event for event in self if isinstance(event, kind)]

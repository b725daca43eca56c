"""Excusing takes away what an entry predicts or covers, tensor by tensor, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from properties.case import Case, Step
from properties.domain import Contract
from properties.expectation.expected import Expected, Interval
from properties.judge.catalogue import judge
from properties.observation import Observation, Raised, RankObservation
from properties.verdict import Discrepancy, Outcome, Verdict, violated
from tests.verify.fakes import interval, tensor
from verify.known.entries import Clause, Entry, Extent
from verify.known.excusing import _without_predicted, excuse
from verify.trial import Excused

CASE = Case(batches=(1, 1), channels=3, seed=1)
NAMES = ("output.0",)


def entry(**changes: object) -> Entry:
    fields: dict[str, object] = {
        "id": "one",
        "reason": "Why.",
        "link": "",
        "case": CASE,
        "when": (Clause("world_size", "is", 2),),
        "properties": ("forward",),
        "mechanism": "half-sums",
    }
    return Entry(**{**fields, **changes})  # type: ignore[arg-type]


def plain(**changes: object) -> Entry:
    return entry(mechanism="", properties=("ending",), **changes)


def outputs(*rows: list[float], bound: float = 1e-3) -> dict[int, Interval]:
    return {rank: interval(np.array([row]), bound) for rank, row in enumerate(rows)}


@dataclass
class Predictions:
    """Judges by the catalogue, and predicts what a mechanism's name is mapped to."""

    observation: Observation
    by_mechanism: dict[frozenset[str], dict[int, Interval]]
    case: Case = CASE

    def judge(self, expected: Expected) -> tuple[Verdict, ...]:
        return judge(self.case, self.observation, expected, Contract(), only=("forward", "nonfinite"))

    def predict(self, case: Case, sites: dict[str, Extent]) -> Expected:
        return Expected(tensors={"output.0": self.by_mechanism[frozenset(sites)]})


def judged(
    observed: tuple[list[float], list[float]],
    known: tuple[Entry, ...],
    predicted: dict[frozenset[str], dict[int, Interval]] | None = None,
) -> tuple[Verdict, tuple[Excused, ...]]:
    """Judge outputs that are expected to be ones."""
    expected = Expected(tensors={"output.0": outputs([1.0] * 3, [1.0] * 3)})
    ranks = tuple(
        RankObservation(rank=rank, ending="returned", tensors={"output.0": tensor(np.array([row]))})
        for rank, row in enumerate(observed)
    )
    observation = Observation(ranks=ranks)
    judges = Predictions(observation, predicted or {})
    verdicts = judges.judge(expected)
    kept, excused = excuse(
        verdicts, known, case=CASE, observation=observation, expected=expected, judges=judges
    )
    return next(one for one in kept if one.property == "forward"), excused


ONES, TWO = [1.0, 1.0, 1.0], [1.0, 2.0, 1.0]
HALF = frozenset({"half-sums"})


def test_without_entries_the_verdict_stands() -> None:
    verdict, excused = judged((ONES, TWO), ())
    assert verdict.outcome is Outcome.VIOLATED
    assert excused == ()


def test_what_a_mechanism_predicts_is_excused() -> None:
    verdict, excused = judged((ONES, TWO), (entry(),), {HALF: outputs(TWO, TWO)})
    assert verdict.outcome is Outcome.HOLDS
    assert excused == (Excused("one", "forward"),)


def test_what_a_mechanism_does_not_predict_is_violated_with_what_is_expected_of_a_correct_subject() -> None:
    verdict, excused = judged((ONES, [1.0, 3.0, 1.0]), (entry(),), {HALF: outputs(TWO, TWO)})
    assert verdict.outcome is Outcome.VIOLATED
    assert verdict.discrepancies[0].expected == 1.0
    assert excused == ()


def test_one_element_beside_the_prediction_violates() -> None:
    verdict, excused = judged((ONES, [1.5, 2.0, 1.0]), (entry(),), {HALF: outputs(TWO, TWO)})
    assert verdict.outcome is Outcome.VIOLATED
    assert excused == ()


def test_a_tensor_that_is_as_expected_is_judged_by_that() -> None:
    verdict, excused = judged((ONES, ONES), (entry(),), {HALF: outputs(TWO, TWO)})
    assert (verdict.outcome, excused) == (Outcome.HOLDS, ())


def test_mechanisms_may_act_together_or_alone() -> None:
    two = entry(id="two", mechanism="half-statistics")
    both = frozenset({"half-sums", "half-statistics"})
    predicted = {
        both: outputs([3.0] * 3, [3.0] * 3),
        HALF: outputs(TWO, TWO),
        frozenset({"half-statistics"}): outputs(TWO, [5.0] * 3),
    }
    verdict, excused = judged(([3.0] * 3, [5.0] * 3), (entry(), two), predicted)
    assert verdict.outcome is Outcome.HOLDS
    assert {one.entry for one in excused} == {"one", "two"}


def test_a_nan_that_is_predicted_is_excused_and_a_number_in_its_place_is_not() -> None:
    nan = {HALF: {rank: interval(np.full((1, 3), np.nan), 0.0) for rank in (0, 1)}}
    excused_verdict, _ = judged((ONES, [np.nan] * 3), (entry(),), nan)
    wrong, _ = judged((ONES, [7.0] * 3), (entry(),), nan)
    assert excused_verdict.outcome is not Outcome.VIOLATED
    assert wrong.outcome is Outcome.VIOLATED


@pytest.mark.parametrize(
    ("properties", "outcome"),
    [
        (("forward", "scaling"), Outcome.UNDECIDED),
        (
            ("grad_input", "scaling"),
            Outcome.VIOLATED,
        ),  # not an entry about the output, though it is as predicted
        (("forward",), Outcome.VIOLATED),
    ],
)
def test_a_second_run_is_excused_for_tensors_of_an_entry_that_names_the_probe(
    properties: tuple[str, ...], outcome: Outcome
) -> None:
    found = Discrepancy(quantity="output.0", rank=0, message="not scaled")
    ranks = (RankObservation(rank=0, ending="returned", tensors={"output.0": tensor(np.array([ONES]))}),)
    predicted = Expected(tensors={"output.0": {0: outputs(ONES)[0]}})
    both = ((ranks, predicted), (ranks, predicted))
    rest = _without_predicted(violated("scaling", [found]), both, [entry(properties=properties)])
    assert rest.outcome is outcome


def test_an_entry_for_another_property_excuses_nothing() -> None:
    verdict, excused = judged((ONES, TWO), (entry(properties=("grad_input",)),))
    assert verdict.outcome is Outcome.VIOLATED
    assert excused == ()


def test_an_entry_for_another_quantity_excuses_nothing() -> None:
    known = (entry(quantities=("running_var",)),)
    verdict, excused = judged((ONES, TWO), known, {HALF: outputs(TWO, TWO)})
    assert verdict.outcome is Outcome.VIOLATED
    assert excused == ()


def test_an_entry_whose_clauses_do_not_hold_excuses_nothing() -> None:
    verdict, _ = judged((ONES, TWO), (entry(when=(Clause("world_size", "is", 3),)),))
    assert verdict.outcome is Outcome.VIOLATED


def of_ending(ending: str, *ranks: int) -> Verdict:
    found = Discrepancy(quantity="ending", rank=ranks[0], mismatched_ranks=ranks, ending=ending)
    return violated("ending", [found])


def left(
    verdict: Verdict,
    known: Entry,
    case: Case = CASE,
    raised: Callable[[int], Raised | None] = lambda rank: None,
) -> tuple[Verdict, tuple[Excused, ...]]:
    """Return what remains of a verdict about endings, and what was excused."""
    ranks = tuple(
        RankObservation(rank=rank, ending="raised" if raised(rank) else "died", raised=raised(rank))
        for rank in range(case.world_size)
    )
    observation = Observation(ranks=ranks)
    judges = Predictions(observation, {}, case)
    (kept,), excused = excuse(
        (verdict,), (known,), case=case, observation=observation, expected=Expected(), judges=judges
    )
    return kept, excused


@pytest.mark.parametrize(("ending", "outcome"), [("died", Outcome.UNDECIDED), ("raised", Outcome.VIOLATED)])
def test_an_ending_is_excused_by_its_kind(ending: str, outcome: Outcome) -> None:
    kept, _ = left(of_ending(ending, 0, 1), plain(endings=("died",)))
    assert kept.outcome is outcome


def test_a_rank_of_another_group_is_not_excused() -> None:
    case = Case(batches=(2, 0, 2), groups=((0, 1), (2,)))
    one = plain(when=(Clause("empty_ranks", "at_least", 1),))
    outcomes = [left(of_ending("died", *ranks), one, case)[0].outcome for ranks in ((1,), (2,), (1, 2))]
    assert outcomes == [Outcome.UNDECIDED, Outcome.VIOLATED, Outcome.VIOLATED]


def test_of_several_discrepancies_only_the_covered_ones_go() -> None:
    verdict = violated(
        "ending",
        [
            Discrepancy(quantity="ending", rank=0, mismatched_ranks=(0,), ending="died"),
            Discrepancy(quantity="ending", rank=1, mismatched_ranks=(1,), ending="raised"),
        ],
    )
    kept, excused = left(verdict, plain(endings=("died",)))
    assert [found.ending for found in kept.discrepancies] == ["raised"]
    assert excused == (Excused("one", "ending"),)


@pytest.mark.parametrize(
    ("phase", "outcome"), [("forward 1", Outcome.UNDECIDED), ("forward 0", Outcome.VIOLATED)]
)
def test_an_exception_is_excused_in_the_step_in_which_the_entry_holds(phase: str, outcome: Outcome) -> None:
    case = Case(batches=(2, 2), steps=(Step(mode="eval"), Step()))
    one = plain(when=(Clause("train", "is", True),))
    kept, _ = left(
        of_ending("raised", 0), one, case, lambda rank: Raised("builtins.RuntimeError", "no", phase)
    )
    assert kept.outcome is outcome


@pytest.mark.parametrize(
    ("observed", "outcome"),
    [("builtins.RuntimeError", Outcome.UNDECIDED), ("builtins.KeyError", Outcome.VIOLATED)],
)
def test_an_exception_is_excused_by_its_type(observed: str, outcome: Outcome) -> None:
    found = Discrepancy(quantity="ending", rank=0, mismatched_ranks=(0,), ending="raised", observed=observed)
    kept, _ = left(violated("ending", [found]), plain(observed=("builtins.RuntimeError",)))
    assert kept.outcome is outcome

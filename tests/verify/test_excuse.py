"""Excusing takes away what an entry covers, element by element, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from properties.case import Case
from properties.catalogue import judge
from properties.domain import Contract
from properties.expected import Expected
from properties.observation import Observation, RankObservation
from properties.verdict import Discrepancy, Outcome, Verdict, violated
from tests.verify.fakes import interval, tensor
from verify.excuse import Excused, excuse
from verify.known import Clause, Entry

CASE = Case(batches=(1, 1), channels=3, seed=1)


def entry(**changes: object) -> Entry:
    fields: dict[str, object] = {
        "id": "one",
        "reason": "Why.",
        "link": "",
        "case": CASE,
        "when": (Clause("world_size", "is", 2),),
        "properties": ("forward",),
    }
    return Entry(**{**fields, **changes})  # type: ignore[arg-type]


def channels(indices: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> Entry:
    """Return an entry that covers these channels, by a made-up fact."""
    from verify.facts import FACTS, Fact

    values = np.array([float(c in indices) for c in range(CASE.channels)])
    monkeypatch.setitem(FACTS, "made_up", Fact("channel", lambda case, group: values, "made up"))
    return entry(when=(Clause("made_up", "at_least", 1),))


def judged(wrong: tuple[int, ...], known: tuple[Entry, ...]) -> tuple[Verdict, tuple[Excused, ...]]:
    """Judge outputs of which the given channels on rank 1 are wrong."""
    expected = Expected(tensors={"output.0": {rank: interval(np.ones((1, 3)), 1e-3) for rank in (0, 1)}})
    values = np.ones((1, 3))
    values[0, list(wrong)] = 2.0
    observation = Observation(
        ranks=(
            RankObservation(rank=0, ending="returned", tensors={"output.0": tensor(np.ones((1, 3)))}),
            RankObservation(rank=1, ending="returned", tensors={"output.0": tensor(values)}),
        )
    )

    def rejudge(other: Expected, property_id: str) -> Verdict | None:
        return judge(CASE, observation, other, Contract(), only=(property_id,))[0]

    verdicts = judge(CASE, observation, expected, Contract(), only=("forward",))
    kept, excused = excuse(verdicts, known, case=CASE, expected=expected, rejudge=rejudge)
    return kept[0], excused


def test_without_entries_the_verdict_stands() -> None:
    verdict, excused = judged((1,), ())
    assert verdict.outcome is Outcome.VIOLATED
    assert excused == ()


def test_a_covered_channel_is_excused_and_the_others_still_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict, excused = judged((1,), (channels((1,), monkeypatch),))
    assert verdict.outcome is Outcome.HOLDS
    assert (verdict.elements, verdict.undecided) == (4, 0)
    assert excused == (Excused("one", "forward"),)


def test_a_channel_that_is_not_covered_stays_violated(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict, excused = judged((1, 2), (channels((1,), monkeypatch),))
    assert verdict.outcome is Outcome.VIOLATED
    assert verdict.discrepancies[0].index == (0, 2)
    assert verdict.discrepancies[0].mismatched == 1
    assert excused == (Excused("one", "forward"),)


def test_an_entry_for_another_property_excuses_nothing() -> None:
    verdict, excused = judged((1,), (entry(properties=("grad_input",)),))
    assert verdict.outcome is Outcome.VIOLATED
    assert excused == ()


def test_an_entry_for_another_quantity_excuses_nothing() -> None:
    verdict, excused = judged((1,), (entry(quantities=("running_var",)),))
    assert verdict.outcome is Outcome.VIOLATED
    assert excused == ()


def test_an_entry_whose_clauses_do_not_hold_excuses_nothing() -> None:
    verdict, _ = judged((1,), (entry(when=(Clause("world_size", "is", 3),)),))
    assert verdict.outcome is Outcome.VIOLATED


def of_ending(ending: str, *ranks: int) -> Verdict:
    found = Discrepancy(quantity="ending", rank=ranks[0], mismatched_ranks=ranks, ending=ending)
    return violated("ending", [found])


def unjudged(other: Expected, property_id: str) -> Verdict | None:
    raise AssertionError("there is nothing to judge again")


@pytest.mark.parametrize(("ending", "left"), [("died", Outcome.UNDECIDED), ("raised", Outcome.VIOLATED)])
def test_an_ending_is_excused_by_its_kind(ending: str, left: Outcome) -> None:
    one = entry(properties=("ending",), endings=("died",))
    (kept,), _ = excuse((of_ending(ending, 0, 1),), (one,), case=CASE, expected=Expected(), rejudge=unjudged)
    assert kept.outcome is left


def test_a_rank_of_another_group_is_not_excused() -> None:
    case = Case(batches=(2, 0, 2), groups=((0, 1), (2,)))
    one = entry(properties=("ending",), when=(Clause("empty_ranks", "at_least", 1),))
    outcomes = []
    for ranks in ((1,), (2,), (1, 2)):
        (kept,), _ = excuse(
            (of_ending("died", *ranks),), (one,), case=case, expected=Expected(), rejudge=unjudged
        )
        outcomes.append(kept.outcome)
    assert outcomes == [Outcome.UNDECIDED, Outcome.VIOLATED, Outcome.VIOLATED]


def test_of_several_discrepancies_only_the_covered_ones_go() -> None:
    verdict = violated(
        "ending",
        [
            Discrepancy(quantity="ending", rank=0, mismatched_ranks=(0,), ending="died"),
            Discrepancy(quantity="ending", rank=1, mismatched_ranks=(1,), ending="raised"),
        ],
    )
    one = entry(properties=("ending",), endings=("died",))
    (kept,), excused = excuse((verdict,), (one,), case=CASE, expected=Expected(), rejudge=unjudged)
    assert [found.ending for found in kept.discrepancies] == ["raised"]
    assert excused == (Excused("one", "ending"),)


def test_an_entry_about_channels_does_not_excuse_what_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    some = channels((1,), monkeypatch)
    verdict = violated("forward", [Discrepancy(quantity="output.0", rank=0, mismatched_ranks=(0,))])
    (kept,), _ = excuse((verdict,), (some,), case=CASE, expected=Expected(), rejudge=unjudged)
    assert kept.outcome is Outcome.VIOLATED

"""How outcomes merge."""

import itertools

from properties.verdict import Outcome, holds, merge_outcomes, undecided, violated

H, V, U = Outcome.HOLDS, Outcome.VIOLATED, Outcome.UNDECIDED


def test_violated_wins_and_undecided_remains_only_if_nothing_was_decided():
    for n in range(5):
        for outcomes in itertools.product((H, V, U), repeat=n):
            merged = merge_outcomes(outcomes)
            assert merged is (V if V in outcomes else H if H in outcomes else U)


def test_shorthands_fill_in_the_counts():
    assert (holds("a", elements=3).outcome, holds("a", elements=3).undecided) == (H, 0)
    assert (undecided("a", "why", elements=3).outcome, undecided("a", "why", elements=3).undecided) == (U, 3)
    assert violated("a", []).outcome is V

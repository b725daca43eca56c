"""Numbers and lists in the words of messages."""

from __future__ import annotations

import pytest

from verify.report.words import count, listing, ranks, ratio, rough, shown


@pytest.mark.parametrize(
    ("items", "words"), [([], ""), ([1], "1"), ([1, 2], "1 and 2"), ([1, 2, 3], "1, 2 and 3")]
)
def test_listing(items: list[int], words: str) -> None:
    assert listing(items) == words


def test_nouns_agree_with_their_number() -> None:
    assert (count(1, "case"), count(0, "case"), count(2, "case")) == ("1 case", "0 cases", "2 cases")
    assert (ranks((3,)), ranks((0, 2))) == ("rank 3", "ranks 0 and 2")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "0.5"),
        (1.0, "1"),
        (0.9963, "0.9963"),
        (1.0204, "1.02"),
        (4.04, "4.0"),
        (250000.0, "2.5e+05"),
        (float("inf"), "inf"),
        ("nan", "nan"),
    ],
)
def test_a_ratio_above_one_never_looks_like_one(value: float | str, words: str) -> None:
    assert ratio(value) == words


def test_numbers() -> None:
    assert shown(0.127929687) == "0.1279297"
    assert rough(0.00098) == "9.8e-04"
    assert rough(0.75) == "0.75"

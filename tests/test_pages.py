"""Pages that a command makes: the stamp says what they are made of; a stale one is a warning, or an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from verify.measure.sensitivity.strata import of_sensitivity
from verify.report.stamp import (
    UNKNOWN,
    StalePage,
    digest,
    generator,
    of_apart,
    of_faults,
    stale,
    stamped,
    warn_if_stale,
)

DOCS = Path(__file__).parents[1] / "docs"
OF = {"cases": "0123456789ab", "faults": "ba9876543210"}


@pytest.mark.parametrize(
    ("page", "made_of"),
    [
        ("faults.md", of_faults),
        ("peers.md", of_faults),
        ("sensitivity.md", of_sensitivity),
        ("diagnosis.md", of_apart),
    ],
)
def test_a_page_is_as_it_would_be_now(page: str, made_of: Callable[[], dict[str, str]]) -> None:
    """Only warns, but in `make test-all`."""
    warn_if_stale(DOCS / page, made_of())


def test_a_page_that_was_just_made_is_not_stale(tmp_path: Path) -> None:
    page = stamped("# A page\n\nText.\n", OF)
    assert page.startswith("# A page\n\nText.\n\n<!-- made of cases 0123456789ab, faults ")
    assert stale(page, OF) == ()
    (tmp_path / "page.md").write_text(page)
    warn_if_stale(tmp_path / "page.md", OF)


@pytest.mark.parametrize(
    ("made_of", "changed"),
    [
        ({**OF, "faults": "000000000000"}, ("faults",)),
        ({"cases": OF["cases"]}, ("faults",)),
        ({**OF, "more": "000000000000"}, ("more",)),
    ],
)
def test_what_changed_is_named(tmp_path: Path, made_of: dict[str, str], changed: tuple[str, ...]) -> None:
    page = stamped("# A page\n", OF)
    assert stale(page, made_of) == changed
    (tmp_path / "page.md").write_text(page)
    with pytest.warns(StalePage, match=rf"page.md is stale \({changed[0]}\)"):
        warn_if_stale(tmp_path / "page.md", made_of)


@pytest.mark.parametrize(
    "page", ["# A page\n", "<!-- made of cases 0 -->\n\nText.\n", "<!-- a comment -->\n"]
)
def test_a_page_without_a_stamp_at_its_end_is_stale(page: str) -> None:
    assert stale(page, OF) == (UNKNOWN,)


def test_digests_tell_lists_apart_and_the_generator_gives_the_same_one_twice() -> None:
    assert digest(["a", "b"]) == digest(["a", "b"]) != digest(["b", "a"])
    assert generator() == generator()


def test_another_generator_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    from properties.case import Case
    from properties.generation import strategies

    before = generator()
    monkeypatch.setattr(strategies, "random_case", lambda source, domain: Case())
    assert generator() != before


def test_other_faults_have_another_digest() -> None:
    from verify.faults.cards import cards

    every = cards()
    assert of_faults(every) == of_faults() == of_faults(reversed(every))
    assert of_faults(every[1:]) != of_faults()

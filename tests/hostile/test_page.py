"""The page of hostile subjects is as it would be now; only a warning, but in `make test-all`."""

from __future__ import annotations

from pathlib import Path

from catalogue import ENTRIES, made_of

from verify.report.stamp import stale, stamped, warn_if_stale

PAGE = Path(__file__).parents[2] / "docs" / "hostile.md"


def test_the_page_is_as_it_would_be_now() -> None:
    warn_if_stale(PAGE, made_of())


def test_a_page_that_was_just_made_is_not_stale() -> None:
    assert len(ENTRIES) > 50
    assert stale(stamped("# A page", made_of()), made_of()) == ()

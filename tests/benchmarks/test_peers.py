"""The peers' checks accept right subjects, and catch what is grossly wrong, hangs and deaths included."""

from __future__ import annotations

import pytest

from benchmarks.peers.checks import SUITES
from benchmarks.peers.peer_findings import judged
from benchmarks.peers.peer_page import VERIFY, Row, missed, table


@pytest.mark.costly
@pytest.mark.parametrize("name", ["verify.subjects.aggregated:Aggregated", "verify.faults.right:AllReduce"])
def test_a_right_subject_passes_every_check(name):
    assert judged(name).caught == {}


def test_a_gross_fault_is_caught_by_every_suite_and_a_fault_of_uneven_splits_only_with_them():
    assert set(judged("verify.subjects.local:Local").caught) == set(SUITES)
    assert set(judged("verify.faults.tutorial:UnweightedRanks").caught) == {"c", "d"}


def test_a_subject_that_cannot_be_loaded_is_caught_and_the_others_checks_still_run():
    caught = judged("verify.faults.tutorial:NoSuchSubject", suites=("a",)).caught
    assert caught["a"].startswith("images: raised")


def test_the_table_counts_by_class_and_in_total_and_tells_what_only_the_peers_catch():
    rows = [
        Row(fault="one", number=1, caught={"c": "uneven images: output", VERIFY: "forward"}),
        Row(fault="two", number=1, caught={"a": "images: output"}),
        Row(fault="three", number=0, caught={}),
    ]
    lines = list(table(rows))
    assert lines[2].endswith("| 2 | 1 | 0 | 1 | 0 | 1 |")
    assert lines[-1] == "| **all** | 3 | 1 | 0 | 1 | 0 | 1 |"
    assert list(missed(rows)) == ["- two: caught by (a), not by this suite"]

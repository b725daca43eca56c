"""Figures: beside a target, and beside what was recorded."""

from __future__ import annotations

import math

from verify.measure.bench.figure import Figure


def test_a_target_is_met_on_its_good_side_only() -> None:
    assert Figure(name="a", value=1.5, target=1.5).met
    assert not Figure(name="a", value=1.51, target=1.5).met
    assert Figure(name="a", value=300.0, target=300.0, sense="at least").met
    assert not Figure(name="a", value=299.0, target=300.0, sense="at least").met


def test_what_could_not_be_measured_is_not_met() -> None:
    assert not Figure(name="a", value=math.nan, target=1.5).met
    assert not Figure(name="a", value=math.nan, target=1.5, sense="at least").met


def test_worse_has_the_direction_of_the_target() -> None:
    assert Figure(name="a", value=1.2, target=1.5).worse_than(1.0) > 0.19
    assert Figure(name="a", value=1.2, target=1.5, sense="at least").worse_than(1.0) < 0
    assert Figure(name="a", value=0.0, target=0.0).worse_than(0.0) == 0
    assert Figure(name="a", value=1.0, target=0.0).worse_than(0.0) == math.inf

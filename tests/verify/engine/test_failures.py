"""Failures are told so that what others follow from comes before them."""

from __future__ import annotations

import pytest

from properties.case import Case
from properties.verdict import Discrepancy
from verify.engine.failures import root_first
from verify.result import Failure, PropertyResult

CASE = Case()


def failure(name: str, stage: str = "") -> Failure:
    return Failure(
        property=name,
        case=CASE,
        found=CASE.id,
        minimised=True,
        discrepancy=Discrepancy(quantity=name),
        text="",
        stage=stage,
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["grad_input", "running_var", "forward"], ["forward", "running_var", "grad_input"]),
        (["agreement", "forward", "running_mean"], ["forward", "running_mean", "agreement"]),
    ],
)
def test_the_order_is_that_of_the_catalogue(given, told):
    assert [one.property for one in root_first(map(failure, given), {})] == told


def test_outputs_that_are_wrong_by_the_buffers_come_after_these():
    found = [
        failure("forward", "buffers"),
        failure("grad_input", "buffers"),
        failure("running_var", "buffers"),
    ]
    assert [one.property for one in root_first(found, {})] == ["running_var", "forward", "grad_input"]
    assert root_first([failure("forward", "buffers")], {})[0].property == "forward"


def test_who_raises_on_most_cases_is_told_so_first():
    counts = {"ending": PropertyResult(violated=5), "forward": PropertyResult(violated=4)}
    found = [failure("forward"), failure("ending")]
    assert [one.property for one in root_first(found, counts)] == ["ending", "forward"]
    counts["forward"] = PropertyResult(violated=6)
    assert [one.property for one in root_first(found, counts)] == ["forward", "ending"]

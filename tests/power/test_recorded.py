"""Recorded observations: what a GPU gave once is judged here, where there is none.

A record's failing trials of `torch`, as `verify run --record` wrote them on an H200 (torch 2.11.0 with CUDA
13), without stacks. Each violated something, and is explained by what the CUDA kernels are known to do.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from properties.case import encode
from properties.domain import Contract
from properties.verdict import Outcome
from verify.engine.examiner import machinery
from verify.known.entries import extent, load
from verify.known.excusing import excuse
from verify.record.reading import trial_from

RECORD = Path(__file__).parent / "recorded" / "h200-torch-2.11.jsonl"
KNOWN = Path(__file__).parents[2] / "verify" / "subjects" / "known" / "torch.toml"
EVERYDAY = 8


@cache
def recorded():
    return tuple(trial_from(line)[1].trial for line in RECORD.read_bytes().splitlines())


@cache
def known():
    entries = load(KNOWN)
    return tuple(entry for entry in entries if entry.concerns(device="cuda", torch="2.11.0"))


class OnCuda:
    """Judges a recorded trial as on the GPU that it ran on."""

    def __init__(self, trial):
        self.trial, self.parts = trial, machinery()

    def judge(self, expected):
        return self.parts.judge(self.trial.case, self.trial.observation, expected, Contract(), only=None)

    def predict(self, case, sites):
        return self.parts.predict(case, Contract(), "A", device="cuda", sites=sites)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(n, marks=() if n < EVERYDAY else pytest.mark.costly)
        for n in range(len(RECORD.read_bytes().splitlines()))
    ],
)
def test_what_a_gpu_gave_is_explained(number):
    trial = recorded()[number]
    judging = OnCuda(trial)
    expected = judging.parts.expect(trial.case, Contract(), "A", device="cuda")
    verdicts = judging.judge(expected)
    assert any(verdict.outcome is Outcome.VIOLATED for verdict in verdicts)
    left, excused = excuse(
        verdicts, known(), case=trial.case, observation=trial.observation, expected=expected, judges=judging
    )
    assert [verdict.property for verdict in left if verdict.outcome is Outcome.VIOLATED] == []
    assert excused


def excuses(trial):
    judging = OnCuda(trial)
    expected = judging.parts.expect(trial.case, Contract(), "A", device="cuda")
    verdicts = judging.judge(expected)
    _, excused = excuse(
        verdicts, known(), case=trial.case, observation=trial.observation, expected=expected, judges=judging
    )
    return {item.entry.partition("-")[0] for item in excused}


@pytest.mark.costly
def test_the_record_shows_each_of_what_cuda_kernels_do():
    assert set().union(*map(excuses, recorded())) >= {"N3", "N6", "N10", "N11", "N13", "S9", "S18"}


def test_a_sum_by_few_threads_is_explained():
    entry = next(entry for entry in known() if entry.id == "N12-few-threads")
    observed = -45002.2109375  # rank 0's grad_bias of the third step, too large a case to be kept
    parts, within = machinery(), []
    for found in (
        parts.expect(entry.case, Contract(), "A", device="cuda"),
        parts.predict(
            entry.case, Contract(), "A", device="cuda", sites={entry.mechanism: extent(entry, entry.case)}
        ),
    ):
        interval = found.tensors["grad_bias.2"][0]
        within.append(bool(abs(observed - interval.value[0]) <= interval.bound[0]))
    assert within == [False, True]


def test_the_cpu_entries_of_kernels_do_not_excuse_what_a_gpu_gave():
    names = {entry.id for entry in known()}
    assert {"N4-low-precision-statistics", "N5-low-precision-backward"}.isdisjoint(names)
    assert {"N10-half-partial-sums", "N11-strided-buffers-not-updated"} <= names


def test_a_record_names_no_place_on_its_machine():
    text = RECORD.read_text("utf-8")
    assert all("stack" not in rank for rank in _ranks())
    assert not any(place in text for place in ("site-packages", "/tmp/", "/root/", "/home/", "/opt/"))


def _ranks():
    for line in RECORD.read_text("utf-8").splitlines():
        yield from json.loads(line)["observation"]["ranks"]


def test_recorded_cases_are_each_another():
    cases = [encode(trial.case) for trial in recorded()]
    assert len(set(cases)) == len(cases)

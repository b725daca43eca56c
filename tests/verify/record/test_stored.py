"""What an older version has stored is read: a record, with its arguments and trials, and a kept case.

`stored/` was written by `python -m verify run --subject local --cases 4 --seed 6 --world-sizes 2 --properties
forward,running_mean --domain dims=2 --grade B --min-cases 3 --record DIR` of commit d70f7be, before the
options of a run became `verify.config.Config`.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from properties.case import Case
from properties.verdict import Outcome
from verify.config import Config
from verify.record.journal import Journal
from verify.record.kept_cases import find_case
from verify.record.previous_run import read
from verify.record.reading import trial_from

STORED = Path(__file__).parent / "stored"


def unpacked(folder: Path) -> Journal:
    path = folder / "record.jsonl"
    path.write_bytes(gzip.decompress((STORED / "record.jsonl.gz").read_bytes()))
    return Journal(path)


def test_a_stored_record_has_its_arguments_and_failing_cases(tmp_path: Path) -> None:
    previous = read(unpacked(tmp_path))
    assert previous is not None
    assert previous.opening.arguments == Config(
        subject=("local",),
        cases=4,
        seed=6,
        world_sizes="2",
        properties=("forward", "running_mean"),
        domain=("dims=2",),
        grade="B",
        min_cases=3,
    )
    assert previous.cases == 4
    assert set(previous.failing) == {"local"}
    assert set(previous.failing["local"]) == {"35ae02f64fb3", "7e476ad5fad8", "e9821a8cb762"}


def test_stored_trials_have_their_verdicts_and_failing_ones_their_observations(tmp_path: Path) -> None:
    texts = [text for kind, text in unpacked(tmp_path).lines() if b'"kind":"trial"' in text]
    trials = [trial_from(text)[1].trial for text in texts]
    assert [trial.outcome for trial in trials] == [
        *[Outcome.VIOLATED] * 3,
        Outcome.UNDECIDED,
        Outcome.VIOLATED,
    ]
    for trial in trials:
        assert (trial.observation is not None) == bool(trial.violated)
        for rank in trial.observation.ranks if trial.observation else ():
            assert rank.ending == "returned"
            assert rank.tensors["output.0"].array.size


def test_a_stored_case_is_found_by_its_id() -> None:
    assert find_case("35ae02f64fb3", (STORED,)) == Case(batches=(1, 1))

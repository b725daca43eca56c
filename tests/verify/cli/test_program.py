"""The program on real ranks: run, replay, doctor, their exit codes and files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from verify import errors
from verify.cli.main import main

MINE = '''
"""Two subjects of one's own."""

import torch
import torch.distributed as dist

from verify.subjects.aggregated import Aggregated


class Raises(Aggregated):
    """Raises on one rank only."""

    def forward(self, x):
        if dist.get_rank() == 1:
            raise RuntimeError("only me")
        return super().forward(x)


class Remembers(Aggregated):
    """Is wrong once its process has run a module with another eps."""

    seen = set()

    def forward(self, x):
        self.seen.add(self.eps)
        return super().forward(x) * len(self.seen)


class Narrow(Aggregated):
    """Promises little."""


class Whole(Aggregated):
    """Promises everything, and has no conversion."""

    convert_sync_batchnorm = None


Narrow.syncbn_verify = {"domain": {"dtypes": ["float32"], "world_sizes": [2]}, "grade": "B"}
'''


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_VERIFY_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")


def test_plain_batch_norm_is_caught_minimised_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        "run --subject local --cases 20 --seed 1 --fail-fast --domain dtypes=float32 --properties forward "
        "--json out.json --record rec"
    )
    assert main(line.split()) == errors.NOT_MET
    told = capsys.readouterr().out
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    (subject,) = document["subjects"]
    assert subject["verdict"] == "VIOLATED"
    failure = subject["failures"][0]
    assert len(failure["case"]["batches"]) == 2
    assert sum(failure["case"]["batches"]) <= 4
    assert failure["case"].get("channels", 1) == 1
    records = [json.loads(text) for text in (tmp_path / "rec/record.jsonl").read_text("utf-8").splitlines()]
    assert records[0]["seed"] == 1
    assert any("observation" in record for record in records if record["kind"] == "trial")
    replay = next(text for text in told.splitlines() if text.startswith("  python -m verify replay "))
    assert main(replay.split()[3:]) == errors.NOT_MET
    # A replay knows neither whether the case is minimal, nor with which changes it holds, nor the other
    # trials that narrow the causes.
    section = told[told.index("\nCase ") :]
    assert "Holds    as an evaluation" in section
    section = section[: section.index("Holds ")]
    for size in ("minimal; ", "not minimised to the end; "):
        section = section.replace(size, "")
    again = capsys.readouterr().out
    assert section in again
    assert 'Resembles the fault "no-synchronisation"' in again


def test_a_right_subject_holds_in_the_domain_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    line = "run --subject ./mine.py:Narrow --cases 10 --min-cases 10 --seed 1 --json out.json"
    assert main(line.split()) == errors.OK
    told = capsys.readouterr().out
    assert "grade required B; satisfied: float32 B" in told
    (subject,) = json.loads(Path("out.json").read_text(encoding="utf-8"))["subjects"]
    assert subject["domain"]["world_sizes"] == [2]
    assert 0.5 < subject["excluded"] < 1
    assert subject["stands_on"]["cases"] == subject["floor"] == 10
    assert subject["stands_on"]["world_sizes"] == {"2": 10}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--cases 3", "it held on 3 cases, and HOLDS needs 20 or more"),
        ("--cases 20 --world-sizes 1", "so that nothing is said of synchronisation"),
        ("--cases 20 --properties conversion", "it held on 0 cases"),
    ],
)
def test_a_verdict_that_would_stand_on_too_little_is_undecided(
    options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(f"run --subject ./mine.py:Whole --seed 1 --domain dtypes=float32 {options}".split())
    told = capsys.readouterr().out
    assert code == errors.UNDECIDED, told
    assert "Whole: UNDECIDED" in told
    assert words in told


@pytest.mark.costly
def test_a_subject_that_raises_on_one_rank_only_is_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    line = "run --subject ./mine.py:Raises --cases 20 --seed 1 --fail-fast --properties ending"
    assert main(line.split()) == errors.NOT_MET
    told = capsys.readouterr().out
    assert "VIOLATED ending" in told
    assert "However, rank 1 raised RuntimeError in forward 0: only me" in told.replace("builtins.", "")
    assert "rank 0: was stopped because a peer had failed" in told


def test_doctor_starts_a_rank_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == errors.OK
    assert "rank group       works" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run --subject ./gone.py:X", "gone.py does not exist"),
        ("run --subject mine:Gone --cases 1", "Gone"),
        ("run --subject aggregated --domain dtypes=float8", "float8"),
        ("run --subject aggregated --contract momentum=other", "torch|decay"),
    ],
)
def test_a_subject_or_promise_that_cannot_be_used_ends_with_64(
    line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == errors.USAGE
    told = capsys.readouterr().err
    assert expected in told
    assert told.count("\n") == 1


@pytest.mark.costly
def test_a_replay_judges_a_large_case(capsys: pytest.CaptureFixture[str]) -> None:
    case = '{"batches":[131072,131072],"channels":5}'
    assert main(["replay", case, "--subject", "aggregated", "--properties", "forward"]) == errors.OK
    told = capsys.readouterr().out
    assert "forward              HOLDS" in told


def test_a_replay_tells_one_block_a_cause_and_all_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["replay", '{"batches":[2,1],"rank_offset":2}', "--subject", "local"]
    assert main(words) == errors.NOT_MET
    short = capsys.readouterr().out
    assert re.findall("^VIOLATED (.+): ", short, re.MULTILINE) == ["forward"]
    assert "\nThe same case also violates (in full with -v)\n  running_mean " in short
    assert main([*words, "-v"]) == errors.NOT_MET
    assert {"forward", "running_mean", "grad_input", "agreement"} <= set(
        re.findall("^VIOLATED (.+): ", capsys.readouterr().out, re.MULTILINE)
    )


def test_a_failure_that_needs_other_cases_before_it_is_seen_again_by_its_own_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    subject = "./mine.py:Remembers"
    few = ("--cases", "15", "--min-cases", "1", "--seed", "1", "--properties", "forward")
    assert main(["run", "--subject", subject, *few]) == errors.NOT_MET
    told = capsys.readouterr().out
    assert "On new ranks it holds: it fails only after 1 other case in the same processes." in told
    (line,) = (line for line in told.splitlines() if line.lstrip().startswith("python -m verify replay"))
    words = shlex.split(line)[3:]
    assert "--after" in words
    assert main(words) == errors.NOT_MET
    assert main(words[: words.index("--after")]) == errors.OK, "without the other it holds"
    assert main([*words[: words.index("--after")], "--times", "2"]) == errors.OK


@pytest.mark.parametrize(
    "case",
    [
        # An empty batch decays the buffers, and a later batch that has values is evaluated with them.
        '{"batches":[0,0],"random_parameters":true,"steps":[{},{"batches":[2,3],"mode":"eval"}]}',
        '{"batches":[0,0],"momentum":null,"random_parameters":true,"steps":[{},{"batches":[2,3],"mode":"eval"}]}',
        # The stand-in's buffers are updated in inference mode while an evaluation waits for its backward.
        '{"steps":[{"backward":"deferred","mode":"eval"},{"backward":"none","grad_mode":"inference"}]}',
        # Variance and eps are both 0 in the half dtype in which a strided kernel evaluates.
        '{"batches":[1,2],"channels":2,"dtype":"float16","eps":1e-8,"input_layout":"permuted","momentum":null,'
        '"param_dtype":"float16","rank_offset":1,"seed":429373080,"steps":[{},{"mode":"eval"}],'
        '"values":"tiny_spread","variance_exponent":-18}',
        # A single value is accepted in training, and no rank evaluates one.
        '{"batches":[1,0],"steps":[{},{"batches":[0,0],"mode":"eval"}],"tracking":false}',
    ],
)
def test_what_later_steps_make_of_a_known_discrepancy_of_torch_is_predicted(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", case, "--subject", "torch"]) == errors.OK
    assert "VIOLATED" not in capsys.readouterr().out

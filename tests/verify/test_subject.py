"""A subject is what its factory promises, with the command line's settings on top."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from properties.domain import DomainError
from verify.config import Config
from verify.known.entries import KnownError
from verify.subject import KEYWORDS, subject_from

ENTRY = """
[[known]]
id = "one"
reason = "Why."
case = '{}'
when = [{fact = "world_size", is = 2}]
properties = ["ending"]
"""


def described(
    promise: dict[str, Any] | None = None, file: str = "", keywords: tuple[str, ...] = KEYWORDS
) -> Any:
    return SimpleNamespace(promise=promise or {}, file=file, keywords=keywords, converts=False)


def test_without_a_promise_a_subject_has_the_default_one() -> None:
    subject = subject_from("m:F", described())
    assert (subject.label, subject.expectation, subject.options) == ("m:F", "HOLDS", ())
    assert subject.promise.grade == "A"
    assert subject.backend == "gloo"


def test_the_command_line_goes_over_the_promise_and_into_the_replay_line() -> None:
    config = Config(
        domain=("dtypes=float32",), contract=("momentum=decay",), grade="C", device="cuda", backend="gloo"
    )
    subject = subject_from(
        "m:F",
        described({"grade": "B", "domain": {"dims": [2]}}),
        config=config,
    )
    assert subject.promise.grade == "C"
    assert subject.promise.domain.dims == (2,)
    assert subject.promise.domain.dtypes == ("float32",)
    assert subject.narrowed == {"dtypes"}
    assert subject.options == ("--device cuda", "--backend gloo", "--contract momentum=decay", "--grade C")


def test_seconds_of_a_case_on_the_command_line_go_over_those_promised_and_into_the_replay_line() -> None:
    promised = subject_from("m:F", described({"case_seconds": 45}))
    assert (promised.promise.case_seconds, promised.options) == (45, ())
    given = Config(case_seconds=90.0)
    subject = subject_from("m:F", described({"case_seconds": 45}), config=given)
    assert (subject.promise.case_seconds, subject.options) == (90.0, ("--case-seconds 90",))


def test_on_cuda_the_number_of_gpus_decides_the_backend() -> None:
    subject = subject_from("m:F", described(), config=Config(device="cuda"))
    assert subject.backend == "nccl or gloo"
    assert subject.options == ("--device cuda",)


def test_known_discrepancies_lie_beside_the_factory(tmp_path: Path) -> None:
    (tmp_path / "known.toml").write_text(ENTRY, encoding="utf-8")
    subject = subject_from("m:F", described({"known": "known.toml"}, str(tmp_path / "m.py")))
    assert [entry.id for entry in subject.known] == ["one"]


def test_a_missing_file_of_known_discrepancies_is_told(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"known='gone\.toml'"):
        subject_from("m:F", described({"known": "gone.toml"}, str(tmp_path / "m.py")))


def test_a_promise_with_an_unknown_key_is_told() -> None:
    with pytest.raises(DomainError, match="domain"):
        subject_from("m:F", described({"domains": {}}))


def test_what_a_factory_takes_no_keyword_for_is_out_of_its_domain() -> None:
    subject = subject_from("m:F", described(keywords=("eps", "dtype")))
    domain = subject.promise.domain
    assert (domain.affine, domain.tracking, domain.groups) == (("both",), (True,), ("world",))
    assert not domain.momentum_none
    assert subject.fixed == {"momentum": 0.1}
    assert subject.lacking == ("momentum", "affine", "track_running_stats", "process_group", "bias")


def test_a_factory_without_bias_still_takes_affine() -> None:
    keywords = tuple(name for name in KEYWORDS if name != "bias")
    assert subject_from("m:F", described(keywords=keywords)).promise.domain.affine == ("both", "none")


@pytest.mark.parametrize("domain", [{"groups": ["disjoint"]}, {"eps": "zero"}])
def test_a_domain_that_the_keywords_leave_empty_is_an_error(domain: dict[str, object]) -> None:
    with pytest.raises(DomainError, match="factory without"):
        subject_from("m:F", described({"domain": domain}, keywords=("momentum",)))


def test_a_factory_without_eps_is_not_asked_for_zero() -> None:
    subject = subject_from(
        "m:F", described({"domain": {"eps": ["positive", "zero"]}}, keywords=("momentum",))
    )
    assert subject.promise.domain.eps == ("positive",)

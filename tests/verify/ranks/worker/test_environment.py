"""What a subject finds of its environment in a rank, and what was imported before it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from properties.case import Case
from verify.ranks.pool import RankPool
from verify.ranks.server import may_import_dynamo

_SUBJECT = """
import os
import torch
assert os.environ["OF_THE_SHELL"] == "yes"
os.environ["OF_THE_SUBJECT"] = "yes"

class Norm(torch.nn.BatchNorm1d):
    def forward(self, x):
        assert os.environ["OF_THE_SHELL"] == os.environ["OF_THE_SUBJECT"] == "yes"
        return super().forward(x)
"""


def test_variables_of_the_shell_and_of_the_subject_s_module_hold_in_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_SHELL", "yes")
    (tmp_path / "norm.py").write_text(_SUBJECT)
    with RankPool(timeout=5.0) as pool:
        for seed in range(2):
            ours = pool.run(f"{tmp_path / 'norm.py'}:Norm", Case(batches=(3,), seed=seed)).ranks[0]
            assert ours.raised is None


@pytest.mark.parametrize(
    ("installed", "variable", "may"),
    [(False, None, True), (True, None, False), (True, "1", True), (True, "0", True)],
)
def test_triton_is_not_imported_before_a_subject_that_may_ask_for_its_interpreter(
    monkeypatch: pytest.MonkeyPatch, installed: bool, variable: str | None, may: bool
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if variable is not None:
        monkeypatch.setenv("TRITON_INTERPRET", variable)
    found = importlib.util.find_spec("json") if installed else None
    monkeypatch.setattr("verify.ranks.server.importlib.util.find_spec", lambda _: found)
    assert may_import_dynamo() is may

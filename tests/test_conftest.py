"""What our tests draw does not depend on where they run, and what is costly runs where it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
DRAWS = """
import hypothesis
from hypothesis import strategies as st

drawn = []

@hypothesis.given(st.integers())
def test_draws(number):
    drawn.append(number)

def test_told(capsys):
    with capsys.disabled():
        print("DRAWN", hash(tuple(drawn)), hypothesis.settings.default.database)
"""
CAMPAIGN = """
import hypothesis
from hypothesis import strategies as st
from verify.engine.search import Source, draw

hypothesis.settings.register_profile("theirs", PROFILE)
hypothesis.settings.load_profile("theirs")
drawn = []
draw(Source(st.integers(), seed=3, limit=40), lambda case, place: drawn.append((case, place)))
print(len(drawn), hash(tuple(drawn)))
"""


def told(*command: str, ci: bool) -> str:
    """Return what `command` prints, where the variable CI is set or not."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for name in ("CI", "TF_BUILD", "GITHUB_ACTIONS"):  # some of those that Hypothesis looks at
        environment.pop(name, None)
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"} | ({"CI": "true"} if ci else {})
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("ci", [pytest.param(False, marks=pytest.mark.costly), True])
@pytest.mark.parametrize(("profile", "fresh"), [("conftest", True), ("no:nothing", False)])
def test_our_tests_draw_anew_wherever_they_run(tmp_path: Path, profile: str, fresh: bool, ci: bool) -> None:
    (tmp_path / "test_draws.py").write_text(DRAWS)
    command = ("-m", "pytest", "-q", "-p", profile, "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    lines = [
        next(line for line in told(*command, str(tmp_path), ci=ci).splitlines() if "DRAWN" in line)
        for _ in range(2)
    ]
    assert (lines[0] != lines[1]) is (fresh or not ci), "without our settings CI decides"
    if fresh:
        assert lines[0].endswith("None")


def test_a_campaign_draws_the_same_wherever_it_runs_and_by_any_profile() -> None:
    profiles = (("", False), ("", True), ("derandomize=True", True), ("max_examples=3", False))
    drawn = {told("-c", CAMPAIGN.replace("PROFILE", profile), ci=ci) for profile, ci in profiles}
    assert len(drawn) == 1
    assert drawn.pop().startswith("40 ")


@pytest.mark.parametrize(
    ("arguments", "asked", "dear"),
    [
        ((), False, False),
        (("tests",), False, False),
        (("tests",), True, True),
        (("tests/part",), False, True),
        (("tests/part/test_one.py",), False, True),
        (("tests/part/test_one.py::test_dear",), False, True),
        (("tests/other",), False, False),
    ],
)
def test_what_is_costly_runs_where_it_is_asked_for_or_named(pytestconfig, arguments, *, asked, dear) -> None:
    items = [
        SimpleNamespace(path=ROOT / path, get_closest_marker=lambda name, marks=marks: name in marks)
        for path, marks in (("tests/part/test_one.py", ("costly",)), ("tests/other/test_two.py", ()))
    ]
    left: list[object] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left.extend(items))
    config = SimpleNamespace(
        args=[str(ROOT / one) for one in arguments], hook=hook, getoption=lambda name: asked
    )
    rule = next(
        plugin
        for plugin in pytestconfig.pluginmanager.get_plugins()
        if getattr(plugin, "__file__", "") == str(ROOT / "conftest.py")
    )
    rule.pytest_collection_modifyitems(config, items)
    assert [len(items), len(left)] == ([2, 0] if dear else [1, 1])

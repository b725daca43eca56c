"""The pytest plugin on real ranks: items, reproduce line, header, xdist, and a user's own suite."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import platformdirs
import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[3]
INSTALLED = any(entry.name == "syncbn-verify" for entry in entry_points(group="pytest11"))
NO_CACHE = ("-p", "no:cacheprovider")
CACHE = str(platformdirs.user_cache_path())
FEW = ("--verify-cases=16", "--verify-min-cases=4", "--verify-seed=1", *NO_CACHE)


def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> pytest.RunResult:
    if not INSTALLED:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE)  # pytester's home is empty: all would be compiled anew
    monkeypatch.setenv("SYNCBN_VERIFY_DATA", str(pytester.path / "data"))
    plugin = () if INSTALLED else ("-p", "verify.entry")
    return pytester.runpytest_subprocess(*plugin, *arguments, timeout=280)


@pytest.mark.costly
def test_a_right_subject_passes_in_four_items_and_other_tests_are_left_alone(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("def test_other(): assert False")
    done = run(pytester, monkeypatch, "--subject", "aggregated", *FEW, "-n", "2", "-v")
    done.assert_outcomes(passed=4)
    done.stdout.fnmatch_lines(["syncbn-verify *torch *cpu/gloo*", "subjects: aggregated; seed 1"])
    done.stdout.fnmatch_lines(["*PASSED*aggregated-shard?of4*"])


@pytest.mark.timeout(600)  # it minimises and names the causes of several failures in each of four items
def test_a_wrong_subject_fails_with_a_section_a_property_and_its_case_replays(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--verify-cases=8", "--verify-seed=1", "-k", "shard1of4 or shard2of4", *NO_CACHE)
    done = run(pytester, monkeypatch, "--subject", "local", *few)
    done.assert_outcomes(failed=2, deselected=2)
    done.stdout.fnmatch_lines(["VIOLATED forward: *", "VIOLATED running_mean: *", "Reproduce with"])
    line = next(text for text in done.stdout.lines if text.startswith("  pytest --subject local --case "))
    again = run(pytester, monkeypatch, *line.split()[1:], *NO_CACHE)
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["VIOLATED *"])


@pytest.mark.costly
def test_each_shard_has_its_share_of_the_floor(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(pytester, monkeypatch, "--subject", "aggregated", "--verify-cases=16", *NO_CACHE)
    done.assert_outcomes(failed=4)
    done.stdout.fnmatch_lines(["*undecided: it held on 4 cases, and HOLDS needs 5 or more*"])


def test_a_subject_that_cannot_be_loaded_is_one_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(pytester, monkeypatch, "--subject", "./gone.py:SyncBN", *FEW)
    done.assert_outcomes(failed=4)
    done.stdout.fnmatch_lines(["Expected a Python file for the subject './gone.py:SyncBN', *"])
    assert "Traceback" not in done.stdout.str()


@pytest.mark.costly
def test_a_mark_gives_a_check_to_a_users_own_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        """
        import verify

        @verify.parametrize("aggregated", shards=1, cases=5, min_cases=5, seed=1)
        def test_right(check):
            assert check().verdict == "HOLDS"

        @verify.parametrize("local", shards=1, cases=8, seed=1)
        def test_wrong(check):
            check()
        """
    )
    done = run(pytester, monkeypatch, "-p", "no:cacheprovider", "-v")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*test_wrong?local-shard1of1? FAILED*", "*VIOLATED *"])


def test_without_a_subject_nothing_is_added(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("def test_other(): pass")
    done = run(pytester, monkeypatch, "-p", "no:cacheprovider")
    done.assert_outcomes(passed=1)
    assert "subjects:" not in done.stdout.str()


def test_seconds_of_a_case_are_above_0(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(pytester, monkeypatch, "--subject", "local", "--verify-case-seconds", "0")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*Expected --verify-case-seconds above 0, but got 0*"])


def test_a_case_without_a_subject_is_refused(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(pytester, monkeypatch, "--case", "feedfeedfeed")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*Expected --subject with --case*"])

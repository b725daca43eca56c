"""Beside packages of others that have the names of ours: test runs stay whole; what cannot be is one line."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import platformdirs
import pytest

from verify import errors
from verify.cli.main import main
from verify.engine.launchers import launched
from verify.entry import PACKAGES, bind, foreign, home, program

ROOT = Path(__file__).parents[2]
LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
PLUGIN = (
    () if any(e.name == "syncbn-verify" for e in entry_points(group="pytest11")) else ("-p", "verify.entry")
)
SCRIPT = Path(sys.executable).with_name("syncbn-verify")
PLACES = {
    "file": ("{}.py", "X = 2\n"),
    "package": ("{}/__init__.py", "X = 2\n"),
    "script": (
        "{}.py",
        "X = 2\nprint('not asked for')\nif __name__ == '__main__':\n    raise SystemExit(0)\n",
    ),
}
needs_installation = pytest.mark.skipif(
    bool(PLUGIN) or not SCRIPT.exists(), reason="the entry points are those of an installed project"
)


def put(folder: Path, name: str, *, place: str = "package") -> Path:
    """Lay a package of another into `folder`, with a test that uses it."""
    form, text = PLACES[place]
    file = folder / form.format(name)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    (folder / "test_theirs.py").write_text(f"import {name}\n\ndef test_it(): assert {name}.X == 2\n")
    return file


def done(folder: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `command` in `folder` as a user would."""
    # Without CI, since pytest then tells what failed twice, in full.
    left = ("PYTEST_", "PYTHON", "CI")
    own = {name: value for name, value in os.environ.items() if not name.startswith(left)}
    # The home is not this one's: what was compiled must be found all the same.
    own |= {"XDG_CACHE_HOME": str(platformdirs.user_cache_path()), "SYNCBN_VERIFY_DATA": str(folder / "data")}
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**own, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def pytest_in(
    folder: Path, *words: str, safe: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m pytest` in `folder`, or with `safe` as `pytest` does: without the folder on the path."""
    safely = ("-P",) if safe else ()
    command = (sys.executable, *safely, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder))
    return done(folder, *command, *PLUGIN, *words, **environment)


@needs_installation
@pytest.mark.parametrize(
    ("name", "place"),
    [  # One of each everyday: each is a test run, and starts as such.
        pytest.param(name, place, marks=pytest.mark.costly if i % len(PLACES) != j else ())
        for i, name in enumerate(PACKAGES)
        for j, place in enumerate(PLACES)
    ],
)
def test_a_test_run_that_has_nothing_to_do_with_us_is_left_alone(
    tmp_path: Path, name: str, place: str
) -> None:
    file = put(tmp_path, name, place=place)
    found = pytest_in(tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "1 passed" in found.stdout
    (line,) = (line for line in found.stdout.splitlines() if "syncbn-verify stands back" in line)
    assert f"{name!r} is {file}" in line
    plain = pytest_in(tmp_path, safe=True)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert "stands back" not in plain.stdout, "nothing is in the way before the tests are looked at"


@needs_installation
@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("how", ["-m pytest", "conftest", "pythonpath"])
def test_a_subject_beside_such_a_package_is_a_wrong_use_told_in_one_line(
    tmp_path: Path, name: str, how: str
) -> None:
    file = put(tmp_path, name)
    (tmp_path / "pytest.ini").write_text("[pytest]\n" + "pythonpath = .\n" * (how == "pythonpath"))
    if how == "conftest":
        (tmp_path / "conftest.py").write_text("")
    found = pytest_in(tmp_path, "--subject", "aggregated", safe=how != "-m pytest")
    assert found.returncode == pytest.ExitCode.USAGE_ERROR, found.stdout + found.stderr
    (line,) = (found.stdout + found.stderr).strip().splitlines()
    assert line.startswith(f"ERROR: Expected the packages of syncbn-verify, but here {name!r} is {file}")
    assert line.endswith("`syncbn-verify run --subject aggregated` works in any folder.")


@needs_installation
@pytest.mark.parametrize("workers", ["", "-n1"])
def test_a_package_that_a_test_file_brings_along_is_told_in_one_line(tmp_path: Path, workers: str) -> None:
    (tests := tmp_path / "tests").mkdir()
    put(tests, "reference")
    found = pytest_in(tmp_path, "--subject", "aggregated", "tests", *workers.split(), safe=True)
    assert found.returncode == (1 if workers else 4), found.stdout + found.stderr
    lines = [
        line for line in found.stdout.splitlines() + found.stderr.splitlines() if "share a process" in line
    ]
    assert len(lines) == 1
    assert "Traceback" not in found.stdout + found.stderr
    assert "INTERNALERROR" not in found.stdout


@needs_installation
def test_a_suite_with_the_mark_beside_such_a_package_says_so_where_it_is_used(tmp_path: Path) -> None:
    put(tmp_path, "properties")
    (tmp_path / "test_ours.py").write_text(
        "import verify\n\n@verify.parametrize('aggregated', shards=1)\ndef test_it(check): check()\n"
    )
    found = pytest_in(tmp_path)
    assert "1 failed, 1 passed" in found.stdout
    assert (
        found.stdout.count("Undecided: Expected the packages of syncbn-verify, but here 'properties' is") == 1
    )


@needs_installation
@pytest.mark.timeout(900)  # two runs with ranks
def test_the_command_works_in_a_folder_that_has_all_three(tmp_path: Path) -> None:
    for name, place in zip(PACKAGES, PLACES, strict=True):
        put(tmp_path, name, place=place)
    (tmp_path / "kernels.py").write_text("from verify.subjects.aggregated import Aggregated\n")
    mine = "import kernels\nclass Mine(kernels.Aggregated): pass\n"
    (tmp_path / "mine.py").write_text(mine)
    # Ranks have no `reference` of ours: one that comes first on the path is the subject's to use.
    (tmp_path / "more.py").write_text("import reference\nassert reference.X == 2\n" + mine)
    few = ("--cases", "2", "--min-cases", "1", "--seed", "1", "--world-sizes", "2")
    for specs, path in ((("./mine.py:Mine", "mine:Mine"), ""), (("more:Mine",), ".")):
        words = [word for spec in specs for word in ("--subject", spec)]
        found = done(tmp_path, SCRIPT, "run", *words, *few, **({"PYTHONPATH": path} if path else {}))
        assert found.returncode == errors.OK, found.stdout + found.stderr
        assert "not asked for" not in found.stdout
        assert all(f"{spec}: HOLDS" in found.stdout for spec in specs), found.stdout


def test_the_module_works_in_a_folder_that_has_the_two_others(tmp_path: Path) -> None:
    for name in ("properties", "reference"):
        put(tmp_path, name)
    found = done(tmp_path, sys.executable, "-m", "verify", "doctor", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert found.returncode == errors.OK, found.stdout + found.stderr


def test_a_subject_that_wants_a_package_that_is_ours_is_told_so(tmp_path: Path) -> None:
    put(tmp_path, "properties")
    (tmp_path / "mine.py").write_text("from properties import X\n")
    words = ("replay", "{}", "--subject", "./mine.py:Mine")
    found = done(tmp_path, sys.executable, "-m", "verify", *words, PYTHONPATH=str(ROOT))
    assert found.returncode == errors.USAGE
    assert len(found.stderr.splitlines()) == 1
    assert "`properties` is a package of syncbn-verify here" in found.stderr


def test_children_find_ours_in_spite_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PACKAGES, "json"):
        put(tmp_path, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = subprocess.run(
        program("verify.cli.doctor"), capture_output=True, text=True, timeout=240, check=False
    )
    assert "cannot import name 'main' from 'verify.cli.doctor'" in found.stderr
    assert str(ROOT) in found.stderr


def test_the_three_are_told_from_those_of_others(tmp_path: Path) -> None:
    assert foreign() == {}
    assert home() == ROOT
    put(tmp_path, "reference")
    (tmp_path / "properties").mkdir()  # a folder without __init__.py comes after all packages
    code = "from verify.entry import bind, foreign; print(foreign()); bind(); print(foreign())"
    found = done(tmp_path, sys.executable, "-c", code, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert found.stdout.splitlines() == [
        str({"reference": str(tmp_path / "reference" / "__init__.py")}),
        "{}",
    ]


def test_binding_leaves_the_path_as_it_is() -> None:
    before = list(sys.path)
    bind()
    assert sys.path == before


def test_the_entry_points_name_a_module_that_nobody_else_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"syncbn-verify": "syncbn_verify:main"}
    assert project["project"]["entry-points"]["pytest11"] == {"syncbn-verify": "syncbn_verify"}
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    # A link, since a file that is put elsewhere is left out of its own package.
    assert included == {"verify/syncbn_verify.py": "syncbn_verify.py"}
    link = ROOT / "verify" / "syncbn_verify.py"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "verify" / "entry.py"


@needs_installation
def test_the_installed_copy_is_not_stale() -> None:
    spec = find_spec("syncbn_verify")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).read_text() == (ROOT / "verify" / "entry.py").read_text(), (
        "install the project again"
    )


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        (LAUNCHED, True),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, True),
        ({**LAUNCHED, "WORLD_SIZE": "1"}, False),
        ({"TORCHELASTIC_RUN_ID": "none"}, False),
        ({"WORLD_SIZE": "2", "RANK": "0"}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),
        ({**LAUNCHED, "WORLD_SIZE": "many"}, False),
        ({}, False),
    ],
)
def test_only_a_launcher_of_several_processes_is_refused(environment: dict[str, str], refused: bool) -> None:
    assert bool(launched(environment)) is refused


@pytest.mark.parametrize("command", [["run"], ["replay", "{}", "--subject", "local"], ["faults"]])
def test_a_command_under_torchrun_is_refused_in_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert main(command) == errors.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "but got 2 of a launcher like torchrun" in line
    assert "--launcher torchrun" in line


def test_a_test_run_under_torchrun_is_refused_only_with_a_subject(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text("def test_it(): pass\n")
    path = {"PYTHONPATH": str(ROOT)}
    assert pytest_in(tmp_path, **LAUNCHED, **path).returncode == 0
    found = pytest_in(tmp_path, "--subject", "local", **LAUNCHED, **path)
    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = (found.stdout + found.stderr).strip().splitlines()
    assert "but got 2 of a launcher like torchrun" in line

"""The way in: finds the three packages of this project where others have packages of the same names.

Installed once more as `syncbn_verify`, a name that nobody else has: that is what the console script and the
entry point for pytest name. So it imports nothing of this project, and nothing that takes time, before it
knows where that is.

Rules
-----
- Two packages of one name cannot share a process. Where a program of ours begins, ours are loaded first
  (`bind`), and from then on no path can hide them.
- In a test run the others' come first: it loads ours only for --subject, and if nothing is in the way.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

PACKAGES = ("verify", "properties", "reference")
EXPECTED = "Expected the packages of syncbn-verify, but "
"""How a message begins that ends with what `conflict` returns."""
_START = (
    "import sys, json; path, folder = json.loads(sys.argv[1]); sys.path[:] = [folder, *path]; "
    "import verify.entry; verify.entry.bind({names}); sys.path[:] = path; from {module} import main; main()"
)


def home() -> Path:
    """Return the folder that holds the three packages.

    Raises:
        ImportError: If it is not found any more.
    """
    here = Path(__file__).resolve().parent
    for folder in (here, here.parent, *map(Path, sys.path)):
        if all((folder / name).is_dir() for name in PACKAGES) and (folder / "verify" / "entry.py").is_file():
            return folder.resolve()
    raise ImportError(
        "Expected the packages of syncbn-verify on the path, but there are none; install it again."
    )


def foreign(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return those names that are taken by packages of others, each with the file that comes first."""
    ours, found = home(), dict[str, str]()
    for name in names:
        place = _place(name)
        if place is not None and not place.is_relative_to(ours / name):
            found[name] = str(place)
    return found


def conflict() -> str:
    """Return in one line which names are taken; empty if none is."""
    try:
        taken = [f"{name!r} is {place}" for name, place in foreign().items()]
    except ImportError as error:
        return f"there are none ({error})"
    if not taken:
        return ""
    return f"here {', '.join(taken)}, and two packages of one name cannot share a process"


def bind(names: Sequence[str] = PACKAGES) -> None:
    """Load ours under these names, whatever comes first on the path, which stays as it is."""
    before = list(sys.path)
    sys.path.insert(0, str(home()))
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        sys.path[:] = before


def program(module: str, *arguments: str, names: Sequence[str] = PACKAGES) -> list[str]:
    """Return the command of a child process that runs `module.main()` with this process's path.

    Args:
        module: Of ours.
        arguments: What the child finds at the end of its `sys.argv`.
        names: Packages of ours that it loads first.
    """
    code = _START.format(names=tuple(names), module=module)
    return [sys.executable, "-P", "-c", code, json.dumps([sys.path, str(home())]), *arguments]


def main() -> int:
    """Run the command line, in any folder; modules of the user's are also found in the current one."""
    bind()
    if not {"", here := str(Path.cwd())} & set(sys.path):
        sys.path.append(here)
    return int(importlib.import_module("verify.cli.main").main())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("syncbn-verify", "synchronized batch norm against its reference")
    only = "with --subject: "
    options: dict[str, dict[str, Any]] = {
        "--subject": {
            "action": "append",
            "default": [],
            "metavar": "SPEC",
            "help": "judge this SyncBN; may be repeated",
        },
        "--case": {"metavar": "ID", "help": only + "only this case (id, file or JSON)"},
        "--verify-seed": {"type": int, "metavar": "N", "help": only + "seed of the draws (random)"},
        "--verify-cases": {"type": int, "metavar": "N", "help": only + "cases of the whole campaign"},
        "--verify-min-cases": {
            "type": int,
            "metavar": "N",
            "help": only + "cases of the whole campaign that a verdict HOLDS needs (20)",
        },
        "--verify-device": {"choices": ("cpu", "cuda"), "default": "cpu", "help": only + "cpu or cuda"},
        "--verify-backend": {"choices": ("gloo", "nccl"), "help": only + "gloo or nccl"},
        "--verify-case-seconds": {
            "type": float,
            "metavar": "S",
            "help": only + "seconds that one small case may take on the ranks (10)",
        },
    }
    for name, settings in options.items():
        group.addoption(name, **settings)


def pytest_configure(config: pytest.Config) -> None:
    """Fix the seed, which all workers of a distributed run share; with --subject, register the rest."""
    import pytest

    option = config.option
    if option.case is not None and not option.subject:
        raise pytest.UsageError("Expected --subject with --case, but got none; say whose case it is.")
    if option.verify_case_seconds is not None and not option.verify_case_seconds > 0:
        raise pytest.UsageError(
            f"Expected --verify-case-seconds above 0, but got {option.verify_case_seconds:g}; give seconds."
        )
    if option.verify_seed is None:
        option.verify_seed = secrets.randbelow(2**32)
    if not option.subject:
        return
    if words := conflict():
        specs = " ".join(f"--subject {spec}" for spec in option.subject)
        raise pytest.UsageError(f"{EXPECTED}{words}; `syncbn-verify run {specs}` works in any folder.")
    config.pluginmanager.register(importlib.import_module("verify.pytest.plugin"), "syncbn-verify-items")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say once that this plugin stands back."""
    words = "" if config.option.subject else conflict()
    return f"syncbn-verify stands back: {words}." if words else None


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Hand the seed to a suite that uses `verify.parametrize`."""
    if shards := _shards():
        shards.use_seed(config.option.verify_seed)


def pytest_unconfigure() -> None:
    """End the ranks of a suite that started some."""
    if shards := _shards():
        shards.close_runs()


def _shards() -> Any:
    """Return our module of shared runs if this process has loaded it."""
    loaded = sys.modules.get("verify.pytest.shard")
    place = getattr(loaded, "__file__", None)
    return loaded if place and Path(place).resolve() == home() / "verify" / "pytest" / "shard.py" else None


def _place(name: str) -> Path | None:
    """Return the file that `name` is imported from; None if there is none."""
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        origin = spec.origin if spec else None
    return Path(origin).resolve() if origin else None

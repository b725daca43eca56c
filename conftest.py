"""Fixtures that all test folders share: a run with real ranks, and a data folder that is not the user's.

Also registers the project's own pytest plugin when the tests run from a checkout that is not installed, says
which tests are left out of the everyday run, and by which settings Hypothesis draws: the same everywhere.
By its own it draws no new examples where the variable CI is set, and fails elsewhere what takes long.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from verify.engine.engine import Run

if not any(entry.name == "syncbn-verify" for entry in entry_points(group="pytest11")):
    pytest_plugins = ["verify.entry"]

settings.register_profile(
    "syncbn-verify",
    derandomize=False,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=(HealthCheck.too_slow,),
)
settings.load_profile("syncbn-verify")


TESTS = Path(__file__).parent / "tests"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer what is costly."""
    parser.addoption("--costly", action="store_true", help="run the tests, too, that cost minutes together")


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist nobody asks
def pytest_xdist_auto_num_workers() -> int:
    """Have `-n auto` start one more worker than there are cores: many tests wait for ranks that hang."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Have one process import torch for all servers of ranks that the tests start, in workers, too."""
    from verify.ranks.zygote import VARIABLE, Zygote

    if VARIABLE not in os.environ:
        config.add_cleanup(Zygote(dynamo=True).__enter__().close)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is costly, unless it is asked for, or the command line names its file or folder."""
    named = {Path(argument.partition("::")[0]).resolve() for argument in config.args} - {TESTS, TESTS.parent}
    left = [
        item
        for item in items
        if item.get_closest_marker("costly")
        and not config.getoption("costly")
        and not named & {item.path, *item.path.parents}
    ]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for failing cases, gone after the tests."""
    return tmp_path_factory.mktemp("cases")


@pytest.fixture(scope="session")
def real_run(data_folder: Path) -> Iterator[Run]:
    """An open run with seed 1 over real rank groups: one for all tests, since it starts for seconds.

    With half the usual time limit: the faults that hang take longer than all others otherwise.
    """
    from verify.config import Config
    from verify.engine.engine import Run

    with Run(Config(seed=1), keep=data_folder, timeout=5.0) as run:
        yield run


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C reaches this process and what it starts, also in a shell's background job, which ignores it.

    A handler, not a function that runs between fork and exec: with that, Python forks a process that has
    JAX's threads.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""Fresh seeds: a pytest plugin that runs every Hypothesis test many times, each with draws of its own.

    python -m pytest -p tests.fresh_seeds --fresh 50 -m hypothesis -n 0

A test that fails for one seed of fifty is wrong, or the code is. In one process what jax has compiled is used
again. The root `conftest.py` sees to it that nothing is drawn twice.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--fresh", type=int, default=1, metavar="N", help="run each Hypothesis test N times")


@pytest.fixture
def fresh(request: pytest.FixtureRequest) -> int:
    """The number of the run."""
    return int(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have every Hypothesis test run as often as asked for."""
    times = metafunc.config.option.fresh
    if times > 1 and getattr(metafunc.function, "is_hypothesis_test", False):
        metafunc.fixturenames.append("fresh")
        metafunc.parametrize("fresh", range(times), indirect=True)

"""What is costly among the hostile tests runs when it is asked for: `pytest tests/hostile`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is costly, unless the command line names this folder or a file of it."""
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if any(path == HERE or HERE in path.parents for path in named):
        return
    costly = [item for item in items if item.get_closest_marker("hostile_costly")]
    config.hook.pytest_deselected(items=costly)
    items[:] = [item for item in items if item not in costly]

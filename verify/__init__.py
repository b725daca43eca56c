"""Finding out and telling: subjects, rank groups, campaigns, reports.

Importing this package imports neither torch, jax nor hypothesis; `verify.parametrize` is loaded when asked
for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verify.pytest.parametrize import parametrize

__all__ = ["parametrize"]


def __getattr__(name: str) -> Any:
    """Load `parametrize` (and with it pytest) on first use."""
    if name == "parametrize":
        from verify.pytest.parametrize import parametrize

        return parametrize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

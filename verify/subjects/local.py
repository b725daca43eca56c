"""Batch norm on each rank: the negative control, a synchronized batch norm without the synchronisation.

It is `aggregated` over the rank's own batch: the same arithmetic, and no communication. One rank alone is
right, so that nothing but the missing synchronisation is reported of several.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from verify.subjects.aggregated import Aggregated, Statistics


class Local(Aggregated):
    """Batch norm over the rank's own batch; takes `process_group` and never communicates.

    Where other ranks may have more values it does not refuse a single one a channel: its variance is 0, and
    tracked as that.

    Raises (in forward):
        ValueError: On fewer than two dimensions, a wrong number of channels, or one value a channel in
            training if no other rank could have more, or in evaluation without buffers.
        TypeError: On an input that is not floating-point.
    """

    syncbn_verify: dict[str, Any] = {}  # noqa: RUF012

    def _group(self) -> None:
        """Return no process group, whatever there is."""

    def _check_count(self, count: int) -> None:
        if super()._group() is None:
            super()._check_count(count)

    def track(self, statistics: Statistics) -> None:
        """Update the buffers in place; a single value counts as two equal ones, whose variance is 0, too."""
        super().track(replace(statistics, count=2) if statistics.count == 1 else statistics)

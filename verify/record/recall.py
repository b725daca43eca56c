"""Recall: what a campaign that did not end had judged, so that the same campaign goes on where it was.

Theory of operation
-------------------
A campaign that is run again with the same seed draws the same cases. Where the memory holds a case, its trial
is taken from there in place of a run; so is the end of a minimising that had ended. Everything else (counts,
kinds of failure, known discrepancies, causes) is worked out from the trials as in the first run, by the same
code. What is not drawn again, because the budget is another one, is counted after the last draw.

No I/O here: `verify.record.previous_run` fills a memory from a record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from verify.result import ALWAYS, History
from verify.trial import Trial

Role = Literal["drawn", "stored", "minimal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a trial is in its campaign, beside what it says by itself.

    Attributes:
        role: A drawn case, the stored case of a known discrepancy, or the smallest case of a minimising.
        elapsed: Seconds that the campaign had drawn when the trial ended, minimising left out.
        entry: Of a stored case: id of the known discrepancy.
        found, kind: Of a smallest case: id of the drawn case, and which kind of failure was minimised.
        complete, repeats, history: Of a smallest case: as `verify.result.Failure` has them.
        runs, took: Of a smallest case: runs and seconds of its minimising.
    """

    role: Role
    elapsed: float = 0.0
    entry: str = ""
    found: str = ""
    kind: str = ""
    complete: bool = False
    repeats: bool = True
    runs: int = 0
    took: float = 0.0
    history: History = ALWAYS


@dataclass(frozen=True, slots=True)
class Recalled:
    """A trial that was judged before, and its place."""

    trial: Trial
    place: Place


Load = Callable[[], Recalled]


class Recall:
    """What was judged before; each trial is recalled once.

    Args:
        judged: Id of the case, place, and what loads the trial, in the order of the first run.
    """

    def __init__(self, judged: Iterable[tuple[str, Place, Load]] = ()) -> None:
        self._drawn: dict[str, Load] = {}
        self._stored: dict[tuple[str, str], Load] = {}
        self._concluded: dict[str, Load] = {}
        for case_id, place, load in judged:
            if place.role == "drawn":
                self._drawn[case_id] = load
            elif place.role == "stored":
                self._stored[place.entry, case_id] = load
            else:
                self._concluded[place.kind] = load

    @property
    def left(self) -> int:
        """Drawn cases that were judged before and not yet recalled."""
        return len(self._drawn)

    def holds(self, case_id: str) -> bool:
        """Return whether a drawn case waits to be recalled."""
        return case_id in self._drawn

    def trial(self, case_id: str, entry: str = "") -> Recalled | None:
        """Return, once, what was judged of a case, drawn or stored with the known discrepancy `entry`."""
        load = self._stored.pop((entry, case_id), None) if entry else self._drawn.pop(case_id, None)
        return load() if load else None

    def next(self) -> Recalled | None:
        """Return, once, the first drawn case that is left."""
        return self.trial(next(iter(self._drawn))) if self._drawn else None

    def is_concluded(self, kind: str) -> bool:
        """Return whether the minimising of `kind` had ended."""
        return kind in self._concluded

    def conclusion(self, kind: str) -> Recalled | None:
        """Return the smallest case that the minimising of `kind` ended with."""
        load = self._concluded.get(kind)
        return load() if load else None

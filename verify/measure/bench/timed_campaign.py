"""Blocks: a campaign of a number of cases in this process, timed case by case.

Rules
-----
- A campaign here is that of `verify run`: it draws, runs, computes what is expected, judges and records, into
  a folder of its own.
- The time of a case is the time from when the case before it had been recorded until it is recorded itself.
- Stored cases of known discrepancies do not run. Left out, and counted, are cases that a rank did not return
  from (refused, raised, hung, died), and the case after a lost group, which waits for new ranks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from properties.case import Case
from verify.config import Budget, Config, Policy
from verify.engine.engine import Run
from verify.engine.examiner import Machinery
from verify.errors import RankError
from verify.events import CampaignStarted, Event, GroupLost
from verify.measure.bench.process_tree import cpu_seconds
from verify.record.writing import Record
from verify.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What a block was.

    Attributes:
        cases: Those that count.
        seconds: Wall seconds of each.
        left_out: How many do not count.
        cpu: CPU seconds of the whole process tree a case, those left out included.
    """

    cases: tuple[Case, ...]
    seconds: tuple[float, ...]
    left_out: int
    cpu: float

    @property
    def each(self) -> float:
        """Mean seconds a case."""
        return sum(self.seconds) / len(self.seconds) if self.seconds else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """What bare steps took: wall seconds of the slowest rank, CPU seconds of all ranks."""

    seconds: float
    cpu: float


class Watch(Record):
    """A record that notes when each trial was written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {})
        self._since, self._lost, self._after_loss = 0.0, False, False
        self._left_out, self._cpu = 0, 0.0
        self._timed: list[tuple[Case, float]] = []

    def keep(self, trial: Trial, *rest: Any, **more: Any) -> None:
        """Append one trial, and note the time."""
        super().keep(trial, *rest, **more)
        now = time.perf_counter()
        returned = trial.endings == {"returned"} and not trial.internal
        if returned and not self._lost and not self._after_loss:
            self._timed.append((trial.case, now - self._since))
        else:
            self._left_out += 1
        self._since, self._lost, self._after_loss = now, False, self._lost

    def handle(self, event: Event) -> None:
        """Append what a record appends; note what begins, and which group is lost."""
        super().handle(event)
        if isinstance(event, CampaignStarted):
            self._begin()
        elif isinstance(event, GroupLost):  # told before the trial that has lost it is kept
            self._lost = True

    def block(self) -> Block:
        """Return what was noted since the campaign started."""
        cases, seconds = zip(*self._timed, strict=True) if self._timed else ((), ())
        cpu = (cpu_seconds() - self._cpu) / max(1, len(cases) + self._left_out)
        return Block(cases=cases, seconds=seconds, left_out=self._left_out, cpu=cpu)

    def _begin(self) -> None:
        self._timed, self._left_out, self._cpu = [], 0, cpu_seconds()
        self._since, self._lost, self._after_loss = time.perf_counter(), False, False


class BenchRun(Run):
    """An open run whose campaigns are blocks.

    Args:
        watch: Its record.
        parts: The reference and the properties; None for the usual ones.
    """

    def __init__(self, watch: Watch, parts: Machinery | None = None) -> None:
        config = Config(seed=1)
        super().__init__(config, (watch,), record=watch, keep=watch.folder, threads=1)
        self._watch = watch
        self._parts = parts

    def verified(self, spec: str, cases: int, *, seed: int, world_size: int | None = None) -> Block:
        """Judge `spec` on so many drawn cases, of one number of ranks or of the default ones."""
        config = Config(world_sizes=None if world_size is None else str(world_size))
        subject = self.subject(spec, config=config)
        self.campaign(subject, seed=seed, budget=Budget(cases=cases), policy=Policy(stored=False))
        return self._watch.block()

    def once(self, spec: str, case: Case) -> float:
        """Return the wall seconds in which `case` is run, judged and recorded once.

        Raises:
            RankError: If it did not return on every rank: then there is nothing to time.
        """
        examiner = self.examiner(self.subject(spec))
        began = time.perf_counter()
        trial = examiner.examine(case)
        self.keep(trial)
        seconds = time.perf_counter() - began
        if trial.internal or trial.endings != {"returned"}:
            raise RankError(f"Expected case {case.id} to return, but got {trial.internal or trial.endings}.")
        return seconds

    def bare(self, spec: str, cases: tuple[Case, ...]) -> Bare:
        """Return what the bare steps of `cases`, of one world size, take in one loop."""
        ranks = self.pool.bare(spec, cases)
        return Bare(seconds=max(sum(rank.seconds) for rank in ranks), cpu=sum(rank.cpu for rank in ranks))


@contextmanager
def bench_run(parts: Machinery | None = None) -> Iterator[BenchRun]:
    """Open a run that records into a temporary folder; at the end its ranks end and the folder goes."""
    with tempfile.TemporaryDirectory(prefix="syncbn-verify-bench-") as folder:
        watch = Watch(Path(folder))
        try:
            with BenchRun(watch, parts) as run:
                yield run
        finally:
            watch.close()

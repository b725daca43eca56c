"""`python -m tests.hostile.soak --cases N --every M`: many cases, and something hostile every M of them.

Cases are drawn and judged by campaigns over the right subject `aggregated`, in one run. At a random one of
each M cases a rank, all ranks or the server is killed, or a hostile subject of the catalogue strikes between
two campaigns. At the end every case must be accounted for: judged, and held.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verify.config import Config

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from catalogue import ENTRIES, Entry  # noqa: E402
from striking import Range, descendants  # noqa: E402

from verify.config import Budget  # noqa: E402
from verify.engine.engine import Run  # noqa: E402
from verify.events import CaseEnded, Event  # noqa: E402
from verify.ranks.pool import LostGroup, RankPool  # noqa: E402

_SUBJECT = "aggregated"


@dataclass(frozen=True, slots=True)
class Resources:
    """What the whole tree of processes holds.

    Attributes:
        memory: Proportional set size in MB.
        descriptors: Open in this process.
        shared: Shared memory in MB, of the whole machine.
        processes: Below this one.
    """

    memory: float
    descriptors: int
    shared: float
    processes: int

    def __str__(self) -> str:
        return (
            f"{self.memory:.0f} MB (PSS of the tree), {self.descriptors} descriptors, "
            f"{self.shared:.0f} MB shared memory, {self.processes} processes"
        )


def resources() -> Resources:
    """Return what is held now."""
    below = (os.getpid(), *descendants(os.getpid()))
    return Resources(
        memory=sum(map(_pss, below)) / 1024,
        descriptors=len(tuple(Path("/proc/self/fd").iterdir())),
        shared=_field(Path("/proc/meminfo"), "Shmem:") / 1024,
        processes=len(below) - 1,
    )


def _pss(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _field(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    return 0


@dataclass
class Saboteur:
    """Takes the events of a campaign, and does what is hostile at one of its cases."""

    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    pool: RankPool | None = None
    at: int = 0
    act: Callable[[RankPool, random.Random], None] | None = None

    def handle(self, event: Event) -> None:
        """Count the cases, and strike when it is time."""
        if not isinstance(event, CaseEnded):
            return
        self.counts[event.outcome.name] += 1
        if event.internal:
            self.counts["internal"] += 1
            sys.stdout.write(f"our own failure at case {event.number}: {event.internal}\n")
        if event.number == self.at and self.act is not None and self.pool is not None:
            self.act(self.pool, self.chance)


def kill_a_rank(pool: RankPool, chance: random.Random) -> None:
    """Kill one rank of some group."""
    if pids := _ranks(pool):
        _signal(chance.choice(pids), signal.SIGKILL)


def kill_all_ranks(pool: RankPool, chance: random.Random) -> None:
    """Kill the ranks of all groups."""
    for pid in _ranks(pool):
        _signal(pid, signal.SIGKILL)


def kill_the_server(pool: RankPool, chance: random.Random) -> None:
    """Kill the server."""
    if pool.groups.client is not None:
        _signal(pool.groups.client._process.pid, signal.SIGKILL)


_ACTS = (kill_a_rank, kill_all_ranks, kill_the_server)


def _ranks(pool: RankPool) -> list[int]:
    return [pid for group in pool.groups.open.values() for pid in group.pids]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def main(words: Sequence[str] | None = None) -> int:
    """Run the soak; 0 if every case is accounted for and nothing is left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.soak", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000, metavar="N")
    parser.add_argument("--every", type=int, default=200, metavar="M")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    options = parser.parse_args(words)
    losses, all_losses = list[LostGroup](), list[LostGroup]()
    before = resources()
    say(f"before: {before}")
    saboteur = Saboteur(random.Random(options.seed))
    with Run(Config(seed=options.seed), [saboteur]) as run:
        run.pool.groups.on_lost = lambda group: (losses.append(group), all_losses.append(group))
        saboteur.pool = run.pool
        strikes = soak(run, saboteur, options.cases, options.every, options.seed, losses)
    after = resources()
    say(f"after: {after}")
    counts = saboteur.counts
    say(
        f"{options.cases} cases wanted, {counts['HOLDS']} held, {counts['VIOLATED']} violated, "
        f"{counts['UNDECIDED']} undecided, {counts['internal']} failures of our own; "
        f"{len(all_losses)} groups lost; hostile: {dict(sorted(strikes.items()))}"
    )
    whole = counts["HOLDS"] == options.cases and not counts["internal"] and not strikes["told wrongly"]
    clean = after.processes == before.processes and after.descriptors <= before.descriptors + 8
    say("every case is accounted for" if whole else "NOT every case is accounted for")
    say("nothing is left behind" if clean else "something is LEFT BEHIND")
    return 0 if whole and clean else 1


def soak(
    run: Run, saboteur: Saboteur, cases: int, every: int, seed: int, losses: list[LostGroup]
) -> Counter[str]:
    """Judge `cases` cases, with something hostile every `every`; return what was done how often."""
    strikes: Counter[str] = Counter()
    chance, subject, shooting_range = saboteur.chance, run.subject(_SUBJECT), Range(run, losses)
    for number, start in enumerate(range(0, cases, every)):
        some = min(every, cases - start)
        entry: Entry | None = None
        saboteur.act, saboteur.at = None, 0
        if chance.random() < 0.5:
            saboteur.act, saboteur.at = chance.choice(_ACTS), chance.randint(1, some)
            strikes[saboteur.act.__name__] += 1
        else:
            entry = chance.choice([one for one in ENTRIES if not one.costly or one.id.startswith("hangs.")])
        saboteur.counts["campaigns"] += 1
        result = run.campaign(subject, seed=seed * 1_000_003 + number, budget=Budget(cases=some))
        if result.accounting.cases != some:
            say(f"campaign {number}: {result.accounting.cases} of {some} cases, {result.stopped!r}")
        if entry is not None:
            strike = shooting_range.strike(entry)
            after = (strike.right, strike.after)
            right = strike.struck.violated == entry.violated and all(
                one.outcome.name == "HOLDS" for one in after
            )
            strikes["subject of the catalogue"] += 1
            strikes["told wrongly"] += not right
            run.pool.timeout = 10.0
        what = entry.id if entry else saboteur.act.__name__  # type: ignore[union-attr]
        say(f"{start + some} cases; {what}; {resources()}")
    return strikes


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.hostile --table FILE`: every hostile subject, its ending, its verdict and its time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from catalogue import ENTRIES, TIMEOUT, Entry, made_of  # noqa: E402
from striking import Strike, opened  # noqa: E402

from verify.environment import one_line  # noqa: E402
from verify.report.stamp import stamped  # noqa: E402

_HEAD = """# Hostile subjects

Subjects that hang, die, raise, leave their process changed or give no answer, each in the middle of a run on
two ranks. Between a harmless case before and two after (a right subject's, and its own) each must be told
rightly, and nothing may leak: the cases after it must hold, its own with the same bits as before, and what it
has changed must be as it was, or its group of ranks another one. `pytest tests/hostile -n auto` checks all of
it, and faults of the suite's own machinery besides. Where a rank hangs, dies or is stopped, its Python stack
and its collectives are told as far as there are any.

Made by `python -m tests.hostile --table docs/hostile.md` with {where}.
A case got {timeout:g} s unless said otherwise; what a rank waited for a core does not count.

| subject | does | ranks ended | verdict | group | time |
|---|---|---|---|---|---:|
"""


def main(words: Sequence[str] | None = None) -> int:
    """Have every subject strike once, and write the table; 1 if one was not told as the catalogue says."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--table", type=Path, required=True, metavar="FILE", help="the page to write")
    file: Path = parser.parse_args(words).table
    rows, wrong = [], 0
    with opened() as shooting_range:
        for entry in ENTRIES:
            strike = shooting_range.strike(entry)
            wrong += strike.struck.violated != entry.violated or bool(strike.struck.internal)
            rows.append(row(entry, strike))
            sys.stdout.write(rows[-1])
            sys.stdout.flush()
    where = one_line(device="cpu", backend="gloo").partition(": ")[2]
    page = _HEAD.format(where=where, timeout=TIMEOUT) + "".join(rows)
    file.write_text(stamped(page, made_of()))
    return 1 if wrong else 0


def row(entry: Entry, strike: Strike) -> str:
    """Return one line of the table."""
    struck = strike.struck
    ranks = struck.observation.ranks if struck.observation else ()
    properties = ", ".join(struck.violated)
    verdict = f"{struck.outcome.name}{f' ({properties})' if properties else ''}"
    renewed = "; ".join(group.reason for group in strike.lost).removeprefix("left its process changed: ")
    cells = (
        f"`{entry.id}`",
        entry.does,
        ", ".join(dict.fromkeys(_end(seen) for seen in ranks)),
        verdict,
        f"renewed: {renewed}" if renewed else "kept",
        f"{strike.seconds:.1f} s" + (f" of {entry.timeout:g}" if entry.timeout != TIMEOUT else ""),
    )
    return f"| {' | '.join(cells)} |\n"


def _end(seen: object) -> str:
    ending, exit_, raised = (getattr(seen, name) for name in ("ending", "exit", "raised"))
    how = exit_ or (raised.type.rpartition(".")[2] if raised and ending == "raised" else "")
    return f"{ending} ({how})" if how else str(ending)


if __name__ == "__main__":
    sys.exit(main())

"""The command `python -m benchmarks.peers`: the fault catalogue, judged by the peers' checks and by ours."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from benchmarks.peers.checks import MEANS
from benchmarks.peers.ours import ours
from benchmarks.peers.peer_findings import Judgement, judged
from benchmarks.peers.peer_page import VERIFY, Row, missed, summary, table
from verify.faults.cards import Card, cards, right_cards
from verify.measure.power.work_units import chosen
from verify.report.stamp import of_faults, stamped
from verify.subjects.builtins import BUILTINS

_PAGE = """# How it compares

What checks in the style of today's suites catch of the fault catalogue (`verify/faults`), and what this suite
does, in one run on the same machine. The checks are written from the description of PyTorch's, apex's, mmcv's
and fairscale's tests (`benchmarks/peers/checks.py`): fixed shapes, batch norm on the gathered batch, and
`torch.testing.assert_close` with its default tolerances. They are those suites at their best: all compare
outputs, running statistics and all gradients on every rank in three training steps and evaluate afterwards,
and a hang, an exception or a lost rank counts as caught. This suite: seed 1, the default
budget of a run, up to the first failing case.
Made by

    python -m benchmarks.peers --table docs/peers.md

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return 1 if the peers' checks reject a right subject, or catch what we miss."""
    arguments = _parser().parse_args(argv)
    selected = [card for card in chosen(cards(), arguments.names) if not card.masked]
    rejected = [] if arguments.names else list(_rejected(arguments.workers))
    rows = list(_rows(selected, workers=arguments.workers))
    lines = [*_explanations(), "", *table(rows), "", *summary(rows), "", *missed(rows), *rejected]
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.table:
        Path(arguments.table).write_text(stamped(_PAGE + "\n".join(lines), of_faults()), "utf-8")
    if arguments.json:
        Path(arguments.json).write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    return 1 if rejected or list(missed(rows)) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ID|FAMILY", help="these faults only (all)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="one a core")
    parser.add_argument("--table", metavar="FILE", help="write the tables as a page of Markdown")
    parser.add_argument("--json", metavar="FILE", help="write what catches each fault")
    return parser


def _explanations() -> Iterator[str]:
    yield "| | checks |"
    yield "|---|---|"
    for name, text in MEANS.items():
        yield f"| ({name}) | {text} |"


def _rejected(workers: int) -> Iterator[str]:
    """Yield a line for each right subject that a check of the peers rejects; there should be none."""
    names = [card.spec for card in right_cards() if card.grade == "A"]
    specs = [BUILTINS[name].spec if name in BUILTINS else name for name in names]
    for spec, (verdict, _) in zip(specs, _judged(specs, workers), strict=True):
        for suite, finding in verdict.caught.items():
            yield f"- ({suite}) rejects the right subject {spec}: {' '.join(finding.split())}"


def _rows(selected: Sequence[Card], *, workers: int) -> Iterator[Row]:
    specs = [card.spec for card in selected]
    peers, own = _judged(specs, workers, told=_tell), ours(specs, workers=workers)
    for card, (verdict, seconds) in zip(selected, peers, strict=True):
        violated, more = own[card.spec]
        caught = {**verdict.caught, **({VERIFY: violated} if violated else {})}
        times = {"peers": round(seconds, 1), VERIFY: round(more, 1)}
        yield Row(fault=card.id, number=card.number, caught=caught, seconds=times)


def _judged(
    specs: Iterable[str], workers: int, *, told: Callable[[str], None] = lambda line: None
) -> list[tuple[Judgement, float]]:
    def one(spec: str) -> tuple[Judgement, float]:
        started = time.monotonic()
        verdict = judged(spec)
        seconds = time.monotonic() - started
        told(f"{spec}: caught by ({', '.join(verdict.caught)}) in {seconds:.1f} s")
        return verdict, seconds

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, specs))


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")

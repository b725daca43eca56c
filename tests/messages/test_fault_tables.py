"""Snapshots of what the command `faults` writes: the table, the totals, the right subjects, the page."""

from __future__ import annotations

import io
import json

from syrupy.assertion import SnapshotAssertion

from tests.verify.measure.power.samples import RIGHT, acquitted, card, caught, missed, smallest, units
from verify.cli.faults import judge
from verify.measure.power.outcome import Accusation, Broken, Cell, Done
from verify.measure.power.score import Score
from verify.measure.power.score_json import document
from verify.measure.power.score_page import page
from verify.measure.power.work_units import right_units

CARDS = (
    card("equal-weights", number=1, caught_by=("forward", "running_mean")),
    card("odd-constant", number=0, nameable=False, wrong="Adds 1 | 2.", caught_by=("grad_input",)),
    card("missed-one", number=7, small=False, family="other"),
    card("lost-one", number=9, family="other"),
)
CELLS = (
    Cell(dtype="float16", property="forward", pairs=4, elements=90, undecided=3, blind=1, max_ratio=0.97),
    Cell(dtype="float16", property="purity", pairs=4, elements=4),
    Cell(dtype="float32", property="forward", pairs=6, elements=90, violated=1, max_ratio="inf"),
)


class Fake:
    """A crew that does nothing but tell what is known already."""

    def __init__(self, *done: Done) -> None:
        self._done = done

    def work(self, units: object) -> object:
        yield from self._done


def everything() -> tuple[Score, list[Done]]:
    faults = units(*CARDS, seeds=3)
    right = tuple(right_units(RIGHT, cases=20))
    named = {"causes": ("unweighted means",), "classes": (1,), "diagnosed": True}
    done = [caught(unit, **named) for unit in faults[:3]]
    done += [
        caught(unit, cases=200, seconds=7.25, smallest=smallest(3, 4, values=7), properties=("forward",))
        for unit in faults[3:5]
    ]
    done += [caught(faults[5], properties=("forward",), lacking=("grad_input",), internal=2)]
    done += [missed(unit) for unit in faults[6:9]]
    done += [Done(unit=faults[9], outcome=Broken(reason="the worker ended with exit code -9"))]
    accusation = Accusation(property="forward", case='{"batches":[1,1]}', text="VIOLATED forward: ...")
    done += [acquitted(right[0], cells=CELLS[:2])]
    done += [acquitted(right[1], cells=CELLS, accused=1, accusations=(accusation,))]
    return Score((*faults, *right)), done


def test_table_of_faults(snapshot: SnapshotAssertion) -> None:
    score, done = everything()
    stream = io.StringIO()
    judge(score, Fake(*done), stream)
    assert stream.getvalue() == snapshot


def test_page_of_faults(snapshot: SnapshotAssertion) -> None:
    score, done = everything()
    for one in done:
        score.add(one)
    made = page(score, command="python -m verify faults --table docs/faults.md", environment="torch 2.13.0")
    assert made == snapshot


def test_document_of_faults(snapshot: SnapshotAssertion) -> None:
    score, done = everything()
    for one in done:
        score.add(one)
    text = document(score, environment={"python": "3.11"}, command=["verify", "faults"])
    found = json.loads(text)
    assert found["faults"][0]["seeds"][0]["smallest"]["case"] == {"batches": [1, 1]}
    assert found["exit_code"] == 1
    assert text == snapshot

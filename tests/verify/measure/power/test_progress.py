"""Progress: a fault's line once its last seed is done, a bar on a terminal only."""

from __future__ import annotations

import io

import pytest

from tests.verify.measure.power.samples import RIGHT, acquitted, card, caught, units
from verify.measure.power.progress import INTERVAL, Told
from verify.measure.power.score import Score
from verify.measure.power.work_units import right_units


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def told_by(stream, made, done, **more):
    score = Score(made)
    with Told(score, stream, **more) as told:
        for one in done:
            score.add(one)
            told.tell(one)
    return stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_fault_is_told_once_when_all_its_seeds_are_judged(stream):
    made = units(card("a"), card("b"), seeds=2)
    text = told_by(stream(), made, [caught(made[i]) for i in (0, 2, 1, 3)])
    assert text.count("a          1     2/2") == 1
    assert text.count("b          1     2/2") == 1
    assert text.index("\na ") < text.index("\nb ") if stream is io.StringIO else "judged" in text


def test_faults_of_which_some_seeds_were_judged_are_told_at_the_end():
    made = units(card("a"), card("b"), seeds=2)
    text = told_by(io.StringIO(), made, [caught(made[2])])
    assert "b          1     1/2" in text
    assert "\na " not in text


def test_a_log_is_told_now_and_then_how_far_it_is():
    now = [0.0]

    def clock():
        now[0] += INTERVAL / 3
        return now[0]

    made = tuple(right_units(RIGHT, cases=18, chunk=1))
    text = told_by(io.StringIO(), made, [acquitted(unit) for unit in made], clock=clock)
    lines = text.splitlines()
    assert 3 <= len(lines) < len(made)
    assert all(line.endswith(" of 18 units judged") for line in lines)

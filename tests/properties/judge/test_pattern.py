"""What is said of which elements are wrong: what an index tells, and nothing else."""

import numpy as np
import pytest

from properties.judge.pattern import pattern

SHAPE = (6, 5, 2, 4)


def block(*index):
    wrong = np.zeros(SHAPE, np.bool_)
    wrong[index] = True
    return wrong


EVERY = slice(None)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (block(slice(4, None)), "samples from 4 on"),
        (block(3), "samples of index 3"),
        (block(slice(1, 4)), "samples 1 to 3"),
        (block(slice(1, None, 2)), "samples 1 modulo 2"),
        (block(EVERY, 2), "channels of index 2"),
        (block(EVERY, slice(0, None, 4)), "channels 0 modulo 4"),
        (block(EVERY, EVERY, 1, slice(2, None)), "positions from 6 on"),
        (block(EVERY, EVERY, EVERY, 3), "positions 3 modulo 4"),
        (block(EVERY, EVERY), ""),
        (block(0, 0, 0, 0), ""),
        (np.zeros(SHAPE, np.bool_), ""),
        (np.array([False, False, True, True]), "channels from 2 on"),
        (np.array([True, False]), ""),
        (np.array([True, True, False]).reshape(3, 1, 1), ""),  # one right element is no set
    ],
)
def test_a_set_that_an_index_tells_is_named(wrong, words):
    assert pattern(wrong) == words


def test_a_tail_of_a_channel_and_of_the_memory_are_told():
    values = np.zeros((6, 5, 8), np.bool_)
    for value in range(43, 48):
        values[value // 8, :, value % 8] = True
    assert pattern(values) == "values of each channel from 43 on"
    memory = np.zeros(240, np.bool_)
    memory[231:] = True
    assert pattern(memory.reshape(6, 5, 8)) == "elements in memory order from 231 on"


def test_scattered_elements_and_halves_of_a_set_tell_nothing():
    source = np.random.default_rng(0)
    for _ in range(200):
        assert pattern(source.random(SHAPE) < 0.3) == ""
    half = block(slice(4, None))
    half[4:, :, 0] = False
    assert "samples" not in pattern(half)


def test_an_element_that_is_right_by_chance_does_not_hide_the_others():
    wrong = block(slice(4, None))
    wrong[5, 1, 0, 2] = False
    assert pattern(wrong) == "samples from 4 on"

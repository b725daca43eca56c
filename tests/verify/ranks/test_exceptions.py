"""Exceptions: what is told of them, however hard they make it."""

from __future__ import annotations

import pytest

from verify.ranks.exceptions import MAX_MESSAGE, MAX_TRACEBACK, describe


class HostileError(Exception):
    """Raises when asked for its text."""

    def __str__(self):
        raise KeyboardInterrupt


def test_a_builtin_has_its_plain_name_and_others_their_module():
    assert describe(ValueError("x"), "forward 0").type == "ValueError"
    assert describe(HostileError(), "forward 0").type.endswith("test_exceptions.HostileError")


def test_a_message_that_cannot_be_had_is_told():
    assert (
        describe(HostileError(), "forward 1").message == "<str() of the exception raised KeyboardInterrupt>"
    )


@pytest.mark.parametrize("text", ["x" * 10**6, "\ud800" * 10, "line\n" * 10**5])
def test_a_message_is_bounded_and_valid_utf_8(text):
    told = describe(RuntimeError(text), "backward 0")
    assert len(told.message) <= MAX_MESSAGE + 10
    assert len(told.traceback) <= MAX_TRACEBACK + 10
    assert told.message.encode()
    assert told.traceback.encode()


def test_the_traceback_names_the_line():
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    assert "1 / 0" in describe(caught.value, "construct").traceback

"""Exceptions: what is told of them, however hard they make it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verify.ranks.worker.exceptions import MAX_MESSAGE, MAX_TRACEBACK, describe


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


class Wrapper(RuntimeError):
    """What a framework makes of a layer's exception."""


class Wrong(ValueError):
    """A subject's own refusal."""


Compiled = type("Compiled", (RuntimeError,), {"__module__": "torch._dynamo.exc"})


def leaving(outer, inner, *, explicit):
    """Return what is told of `outer`, raised while `inner` was handled, or for it."""
    try:
        try:
            raise inner
        except type(inner) as handled:
            if explicit:
                raise outer from handled
            raise outer  # noqa: B904
    except type(outer) as left:
        return describe(left, "forward 0")


@pytest.mark.parametrize(
    ("outer", "inner", "explicit", "wraps"),
    [
        (Wrapper("in bn1"), ValueError("one value"), True, ("ValueError",)),
        (Compiled("in bn1"), ValueError("one value"), True, ("ValueError",)),
        (Compiled("in bn1"), ValueError("one value"), False, ("ValueError",)),
        (KeyError("an accident"), ValueError("one value"), False, ()),
        (
            Compiled("got ValueError('one, but got KeyError(1)')"),
            KeyError(),
            False,
            ("ValueError", "KeyError"),
        ),
    ],
)
def test_what_an_exception_was_raised_for_is_told(outer, inner, explicit, wraps):
    assert leaving(outer, inner, explicit=explicit).wraps == wraps


def test_of_a_wrapped_exception_the_builtin_base_is_told():
    told = leaving(Wrapper(), Wrong(), explicit=True).wraps
    assert told == (f"{Wrong.__module__}.Wrong", "ValueError")


def test_a_chain_of_exceptions_that_goes_in_a_circle_ends():
    one, other = ValueError(), KeyError()
    one.__cause__, other.__cause__ = other, one
    assert set(describe(one, "forward 0").wraps) == {"ValueError", "KeyError"}


@pytest.mark.parametrize("whole", [False, True], ids=["with breaks", "whole graph"])
@pytest.mark.parametrize("own", [False, True], ids=["torch's refusal", "its own"])
def test_a_compiled_modules_refusal_is_told(whole, own):
    class Refusing(nn.BatchNorm1d):
        def forward(self, input):
            if own and input.shape[0] == 1:
                raise ValueError("one value")
            return super().forward(input)

    torch._dynamo.reset()
    compiled = torch.compile(Refusing(3), backend="eager", fullgraph=whole)
    compiled(torch.zeros(4, 3))
    with pytest.raises(Exception) as left:  # noqa: PT011
        compiled(torch.zeros(1, 3))
    told = describe(left.value, "forward 0")
    assert "ValueError" in (told.type, *told.wraps)

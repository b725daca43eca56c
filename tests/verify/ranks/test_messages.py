"""Messages: frames come out as they went in, however the stream is cut."""

from __future__ import annotations

import socket

import msgspec
import pytest

from properties.case import Case
from verify.ranks.messages import MAX_FRAME, Frames, FromRank, Loaded, Ready, Run, ToRank, frame, receive


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_frames_survive_any_cut(piece):
    sent = [Ready(), Loaded(error="nö"), Ready()]
    data = b"".join(map(frame, sent))
    frames, got = Frames(), []
    for start in range(0, len(data), piece):
        frames.feed(data[start : start + piece])
        while (body := frames.next()) is not None:
            got.append(msgspec.json.decode(body, type=FromRank))
    assert got == sent


def test_a_case_travels_unchanged():
    case = Case(batches=(1, 0, 3), groups=((0, 2), (1,)), momentum=None, eps=1e-7, seed=2**64 - 1)
    body = frame(Run(case=case, ahead=True))[4:]
    assert msgspec.json.decode(body, type=ToRank) == Run(case=case, ahead=True)


def test_a_frame_of_absurd_length_is_refused():
    frames = Frames()
    frames.feed((MAX_FRAME + 1).to_bytes(4, "little"))
    with pytest.raises(ValueError, match="at most"):
        frames.next()


def test_a_closed_connection_ends_the_stream_without_half_a_frame():
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(frame(Ready()) + frame(Ready())[:-1])
        theirs.close()
        frames = Frames()
        assert receive(ours, frames) == frame(Ready())[4:]
        assert receive(ours, frames) is None

"""Messages: what parent, server and ranks say to each other, as tagged JSON in frames of known length.

A frame is four bytes, the little-endian length, and as many bytes of JSON. Neither torch nor numpy here: the
parent, the server and the ranks import this module.
"""

from __future__ import annotations

import signal
import socket
from typing import Any

import msgspec

from properties.case import Case
from properties.observation import RankObservation

MAX_FRAME = 1 << 28
TRACE_SIGNAL = signal.SIGUSR2
_HEADER = 4


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a subject is: an importable module or a file, and the attribute; `spec` as the user wrote it.

    One that may write `inplace` is not given a leaf, which nobody may write to, but what a layer before it
    would give.
    """

    spec: str
    attribute: str
    module: str = ""
    file: str = ""
    inplace: bool = False


class Setup(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Parent to rank, first: take your place in the group.

    Attributes:
        rank, world_size, device, backend: Of the plan.
        folder: The group's folder: the rendezvous file, and `rank-R.log`, `rank-R.stack`.
        whole: Give large tensors back whole, not folded (`properties.values.period.fold`).
    """

    rank: int
    world_size: int
    device: str
    backend: str
    folder: str
    whole: bool = False


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Parent to rank, second: load the subject."""

    target: Target


class Run(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Parent to rank: run `case`.

    One sent `ahead`, while the case before it may still run, is only run if that ended well on every rank.
    """

    case: Case
    ahead: bool = False


class Bare(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Parent to rank: time the bare steps of these cases; see `verify.ranks.worker.bare_steps`."""

    cases: tuple[Case, ...]


class Timed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rank to parent: what bare steps took here, from one barrier on.

    Attributes:
        seconds: Wall seconds of each case.
        cpu: CPU seconds of all, on all threads.
    """

    seconds: tuple[float, ...]
    cpu: float


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rank to parent: the group stands."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank found out about a subject.

    Attributes:
        spec: As the user wrote it.
        name: Qualified name of the factory.
        promise: Its `syncbn_verify` dictionary, or {}.
        keywords: Constructor keywords that it accepts, of those that a subject is built with.
        file: The file that defines it; empty if there is none.
        converts: It offers `convert_sync_batchnorm(module, process_group=None)`.
    """

    spec: str
    name: str
    promise: dict[str, Any]
    keywords: tuple[str, ...]
    file: str = ""
    converts: bool = False


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rank to parent: the subject, or one line why it could not be loaded."""

    description: Description | None = None
    error: str = ""


class TensorHeader(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor with its bytes at `offset` of the rank's memory file; `numpy` names their dtype.

    Of a folded one (`held` is not 0) they are those of the fold, and the shape is theirs; where they lie in
    the tensor is at `positions` of the file.
    """

    dtype: str
    numpy: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    device: str
    aliases_input: bool
    offset: int
    positions: int = -1
    logical_shape: tuple[int, ...] = ()
    held: int = 0
    bits: str = ""


class RankAnswer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rank to parent: what it observed of the case, and where the tensors are.

    Attributes:
        observed: Its observation, without the tensors.
        tensors: Their headers, by name.
        size: Bytes that they take in the memory file, or in the file `spill` if it is named.
        changed: What the subject has changed in its process that cannot be put right: renew the group.
    """

    observed: RankObservation
    tensors: dict[str, TensorHeader] = {}
    size: int = 0
    spill: str = ""
    changed: str = ""


class Skipped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rank to parent: the case of this number, sent ahead, was not run: the one before did not end well."""

    number: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rank to parent: our own code failed there, not the subject."""

    message: str


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Parent to a rank's watch, on a connection of its own: where are your threads?"""

    number: int


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A rank's watch to the parent: where its threads are; see `verify.ranks.worker.watch`.

    Attributes:
        number: Of the look that asked.
        state: A digest; another one if anything has moved.
        stack: Python stacks of all threads, as faulthandler writes them, the main thread's first.
        compiling: A compiler is at work.
    """

    number: int
    state: str
    stack: str
    compiling: bool = False


class Spawn(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Parent to server: fork the ranks. Beside it travel three descriptors a rank.

    They are its ends of two connections, for messages and for looks, and its memory file between them.

    With `dynamo`, they have imported `torch._dynamo` when they begin.
    """

    world_size: int
    folder: str
    dynamo: bool = False


class Spawned(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Server to parent: the process ids of the ranks, or why there are none; and how slow the machine is."""

    pids: tuple[int, ...] = ()
    error: str = ""
    slowness: float = 1.0


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Parent to server: end these ranks.

    Attributes:
        pids: The ranks of one group.
        dead: Those among them that have ended by themselves: their exit codes are wanted.
        trace: Those of which faulthandler shall write the stacks down before, from outside the interpreter
            lock: that may end them, and they end anyway.
    """

    pids: tuple[int, ...]
    dead: tuple[int, ...] = ()
    trace: tuple[int, ...] = ()


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Server to parent: all are gone. How each of `dead` ended: its exit code, negative for a signal."""

    codes: dict[int, int]


class CountDevices(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Parent to server: how many CUDA devices does torch see?"""


class Devices(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Server to parent: the number of CUDA devices."""

    cuda: int


ToRank = Setup | Load | Run | Bare
FromRank = Ready | Loaded | RankAnswer | Skipped | Timed | Failed
ToServer = Spawn | Stop | CountDevices
FromServer = Spawned | Stopped | Devices

_encoder = msgspec.json.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """Return `message` as one frame."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_HEADER, "little") + body


class Fork(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Parent to zygote: fork a server. Beside it travel its connection and its log.

    Attributes:
        folder: As a server of one's own is told.
        directory, path, environment, umask, cores: Of the parent; the server takes them over.
    """

    folder: str
    directory: str
    path: tuple[str, ...]
    environment: dict[str, str]
    umask: int
    cores: tuple[int, ...]


class Forked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Zygote to parent: the server's process id. Beside it travels a descriptor of the process."""

    pid: int


class Frames:
    """The frames that arrive on a stream, taken from it piece by piece."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Append what was read."""
        self._bytes += data

    def next(self) -> bytes | None:
        """Return the body of the next whole frame, or None if it has not arrived."""
        if len(self._bytes) < _HEADER:
            return None
        length = int.from_bytes(self._bytes[:_HEADER], "little")
        if length > MAX_FRAME:
            raise ValueError(f"Expected a frame of at most {MAX_FRAME} bytes, but got {length}.")
        if len(self._bytes) < _HEADER + length:
            return None
        body = bytes(self._bytes[_HEADER : _HEADER + length])
        del self._bytes[: _HEADER + length]
        return body


def receive(connection: socket.socket, frames: Frames) -> bytes | None:
    """Return the body of the next frame, waiting for it; None if the other side is gone."""
    while (body := frames.next()) is None:
        try:
            data = connection.recv(1 << 16)
        except ConnectionResetError:
            return None
        if not data:
            return None
        frames.feed(data)
    return body

"""A watch: a thread of a rank that says, when the parent asks, where the rank's other threads are.

Rules
-----
- It looks under the interpreter lock. What walks a thread's frames while that thread runs may find them half
  made: `faulthandler.dump_traceback_later` does, and has killed ranks whose subject was merely slow.
- It never touches what it looks at: no signal (one would end a sleep or a read in the subject's C code), and
  no call of anything that belongs to the subject.
- Who holds the lock in C for good gets no look. Then faulthandler's dump from outside the lock is what is
  left: by the server, of a rank that is killed in the same breath (`verify.ranks.server`).

Theory of operation
-------------------
The thread waits in `recv` without the lock, so it costs nothing while nobody asks. `state` is a digest of
where the threads are and of what their innermost frames hold: numbers and texts by value, other objects by
identity. A loop that waits for nothing goes through the same few states again and again; one that gets on has
a counter, an iterator's value or a call that is new each time (`verify.ranks.patience`).
"""

from __future__ import annotations

import _thread
import faulthandler
import hashlib
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import msgspec

from verify.ranks.messages import TRACE_SIGNAL, Frames, Look, Seen, frame, receive

_MOST_FRAMES, _MOST_LOCALS, _MOST_CHARACTERS = 100, 50, 200
_COMPILERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("/torch/_dynamo/convert_frame.py", ("_compile", "compile_inner", "_compile_inner")),
    ("/torch/_inductor/compile_fx.py", ()),
    ("/torch/_inductor/async_compile.py", ()),
    ("/torch/utils/cpp_extension.py", ()),
    ("/triton/compiler/compiler.py", ("compile",)),
    ("/triton/runtime/autotuner.py", ("_bench",)),
    ("/numba/core/dispatcher.py", ("compile",)),
    ("/cupy/cuda/compiler.py", ()),
)
"""Files of compilers, and their functions of which one runs while they compile; () for any."""


def start(connection: socket.socket) -> None:
    """Answer the `Look`s that arrive on `connection`, on a thread of its own, until it is closed."""
    # Not by `threading`: the subject does not see this thread, and none of its hooks runs in it.
    _thread.start_new_thread(_serve, (connection, threading.get_ident()))


def write_crashes(path: Path) -> None:
    """Have all stacks written to `path` when this process crashes, or gets `TRACE_SIGNAL`: its last."""
    file = path.open("w")
    faulthandler.enable(file=file, all_threads=True)
    faulthandler.register(TRACE_SIGNAL, file=file, all_threads=True, chain=False)


def look(number: int, main: int, *, apart: int = 0) -> Seen:
    """Return where all threads are but `apart`, the one with the identity `main` first."""
    frames = {thread: top for thread, top in sys._current_frames().items() if thread != apart}
    ordered = sorted(frames.items(), key=lambda item: item[0] != main)
    stacks = [(thread, list(_walk(top))) for thread, top in ordered]
    digest = hashlib.blake2b(digest_size=8)
    for _, stack in stacks:
        for one in stack:
            digest.update(repr(_state(one)).encode("utf-8", "replace"))
    return Seen(
        number=number,
        state=digest.hexdigest(),
        stack="\n\n".join(_text(thread, stack, main=main) for thread, stack in stacks),
        compiling=any(_compiles(one.f_code) for _, stack in stacks for one in stack),
    )


def _serve(connection: socket.socket, main: int) -> None:
    decoder, frames = msgspec.json.Decoder(Look), Frames()
    mine = _thread.get_ident()
    try:
        while (body := receive(connection, frames)) is not None:
            connection.sendall(frame(look(decoder.decode(body).number, main, apart=mine)))
    except BaseException:  # the subject may have closed it, or left no memory: then there are no more looks
        return


def _walk(top: FrameType) -> Iterator[FrameType]:
    """Yield frames, the innermost first."""
    one: FrameType | None = top
    for _ in range(_MOST_FRAMES):
        if one is None:
            return
        yield one
        one = one.f_back


def _text(thread: int, stack: list[FrameType], *, main: int) -> str:
    """Return a stack as faulthandler writes it."""
    name = "Main thread" if thread == main else f"Thread {thread:#018x}"
    places = ((one.f_code.co_filename, one.f_lineno, one.f_code.co_name) for one in stack)
    lines = (f'  File "{file}", line {line} in {function}' for file, line, function in places)
    return "\n".join((f"{name} (most recent call first):", *lines))


def _state(one: FrameType) -> tuple[object, ...]:
    held = [(name, _value(value)) for name, value in list(one.f_locals.items())[:_MOST_LOCALS]]
    return one.f_code.co_filename, one.f_code.co_name, one.f_lasti, held


def _value(value: object) -> object:
    """Return what stands for a local variable; its own code is never called."""
    if value is None or type(value) in (int, float, bool):
        return value if not isinstance(value, int) or abs(value) < 1 << 64 else hash(value)
    return value[:_MOST_CHARACTERS] if type(value) is str else (type(value).__name__, id(value))


def _compiles(code: CodeType) -> bool:
    return any(
        code.co_filename.endswith(file) and (not functions or code.co_name in functions)
        for file, functions in _COMPILERS
    )

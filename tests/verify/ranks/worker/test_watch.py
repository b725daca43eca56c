"""The watch: looks that end no rank, at threads wherever they are."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.verify.ranks.real import CASE, spec
from verify.ranks.messages import Seen
from verify.ranks.pool import RankPool
from verify.ranks.worker.watch import look

ROOT = Path(__file__).parents[4]
LOOKS = 1500
# With `faulthandler.dump_traceback_later(0.001, repeat=True)` in place of the watch this dies of SIGSEGV in a
# second or two (CPython 3.11: of three runs three).
_STRESS = f"""
import socket, sys, threading
from verify.ranks.worker import watch
from verify.ranks.messages import Frames, Look, frame, receive
ours, theirs = socket.socketpair()
watch.start(theirs)
states, over = set(), threading.Event()
def ask():
    frames = Frames()
    for number in range({LOOKS}):
        ours.sendall(frame(Look(number=number)))
        states.add(receive(ours, frames))
    over.set()
threading.Thread(target=ask).start()
def generate(n):
    if n:
        yield from generate(n - 1)
    yield n
def descend(n):
    return n if n == 0 else descend(n - 1) + sum(x for x in (n, 1))
while not over.is_set():
    list(generate(20))
    descend(60)
print(len(states))
"""


@pytest.mark.timeout(120)
def test_many_looks_at_running_python_do_not_end_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STRESS], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == LOOKS, "each look has shown another place or time"


def seen_of(function: object, *arguments: object) -> tuple[Seen, Seen]:
    """Return two looks at a thread that runs a function which does not end by itself, 50 ms apart."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore[arg-type]
    thread.start()
    time.sleep(0.05)
    assert thread.ident is not None
    first = look(1, thread.ident, apart=threading.get_ident())
    time.sleep(0.05)
    return first, look(2, thread.ident, apart=threading.get_ident())


def spin(over: threading.Event) -> None:
    """Loop in one place."""
    held = over.__dict__
    while "over" not in held:
        pass


def count(over: threading.Event) -> None:
    """Loop in one place, and count."""
    held, number = over.__dict__, 0
    while "over" not in held:
        number += 1


@pytest.mark.parametrize(("loop", "moves"), [(spin, False), (count, True), (threading.Event.wait, False)])
def test_a_state_is_new_where_a_local_variable_is(loop: object, moves: bool) -> None:
    over = threading.Event()
    first, later = seen_of(loop, over)
    over.__dict__["over"] = True
    over.set()
    assert (first.state != later.state) == moves


def test_a_stack_is_written_as_faulthandler_does_the_innermost_frame_first() -> None:
    over = threading.Event()
    first, _ = seen_of(over.wait)
    over.set()
    head, frame = first.stack.splitlines()[:2]
    assert head == "Main thread (most recent call first):"
    assert 'threading.py", line ' in frame
    assert frame.endswith(" in wait")
    assert "in seen_of" not in first.stack, "the thread that looks is left out"


@pytest.mark.parametrize(
    ("file", "function", "compiles"),
    [
        ("/x/torch/_dynamo/convert_frame.py", "_compile", True),
        ("/x/torch/_dynamo/convert_frame.py", "_fn", False),
        ("/x/torch/utils/cpp_extension.py", "anything", True),
        ("/x/mine/compile_fx.py", "_compile", False),
    ],
)
def test_a_compiler_at_work_is_seen(file: str, function: str, compiles: bool) -> None:
    over, names = threading.Event(), {}
    source = f"def {function}(over):\n    over.wait()\n"
    exec(compile(source, file, "exec"), names)
    first, _ = seen_of(names[function], over)
    over.set()
    assert first.compiling is compiles


@pytest.fixture(scope="module")
def quick() -> RankPool:
    with RankPool(timeout=0.2, warm_up=0.0) as pool:
        yield pool


@pytest.mark.parametrize(
    ("name", "ending", "where"),
    [
        ("Slow", "returned", ""),
        ("Spins", "timeout", "in forward"),
        ("Counts", "slow", "in forward"),
    ],
)
def test_a_subject_that_takes_its_time_is_slow_and_one_that_stands_still_hangs(
    quick: RankPool, name: str, ending: str, where: str
) -> None:
    first = quick.run(spec(name), CASE).ranks[0]
    assert first.ending == ending, first.stack
    assert where in first.stack


def test_a_subject_may_have_other_seconds_than_the_pool(quick: RankPool) -> None:
    assert quick.submit(spec("SleepsLonger"), CASE, seconds=20.0).result().ranks[0].ending == "returned"
    hurried = quick.submit(spec("SleepsLonger"), CASE, seconds=20.0, share=0.01)
    assert hurried.result().ranks[0].ending == "timeout"

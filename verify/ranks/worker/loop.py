"""The worker: a rank's main loop. It takes one message from the parent, does it, and answers with one.

It leaves, without a word, when the parent's end of the connection is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import socket
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from properties.case import Case
from properties.observation import RankObservation
from properties.values.period import is_large
from verify.errors import SubjectError
from verify.ranks.messages import (
    Bare,
    Description,
    Failed,
    Frames,
    FromRank,
    Load,
    Loaded,
    RankAnswer,
    Ready,
    Run,
    Setup,
    Skipped,
    Timed,
    ToRank,
    frame,
    receive,
)
from verify.ranks.shared_tensors import part, write
from verify.ranks.worker import watch
from verify.ranks.worker.bare_steps import prepare, timed
from verify.ranks.worker.barrier import Barrier
from verify.ranks.worker.collective_log import Ledger
from verify.ranks.worker.compiling import compilations, raise_limits
from verify.ranks.worker.conversion_facts import facts
from verify.ranks.worker.exceptions import describe
from verify.ranks.worker.execution import Execution, Place
from verify.ranks.worker.loader import Factory, load
from verify.ranks.worker.module import build
from verify.ranks.worker.process_state import ProcessState

_NEVER = datetime.timedelta(days=1)
_LOG_BYTES = 1 << 20


def main(connection: socket.socket, memory: int, watched: socket.socket) -> None:
    """Serve the parent at the other end of `connection` until it is gone.

    Args:
        connection: For messages.
        memory: The file that tensors go into.
        watched: For looks, which a thread of its own answers.
    """
    watch.start(watched)
    decoder = msgspec.json.Decoder(ToRank)
    frames = Frames()
    pid = os.getpid()
    worker: Worker | None = None
    while (body := receive(connection, frames)) is not None:
        reply: FromRank
        try:
            match decoder.decode(body):
                case Setup() as setup:
                    worker = Worker(setup, memory)
                    reply = Ready()
                case Load() as request:
                    assert worker is not None
                    reply = worker.load(request)
                case Run() as request:
                    assert worker is not None
                    reply = worker.run(request)
                case Bare() as request:
                    assert worker is not None
                    reply = worker.bare(request)
        except Exception as error:
            if worker is not None and worker.mutilated:
                raise  # no failure of ours: the rank dies of what its subject did
            raised = describe(error, "rank")
            reply = Failed(message=f"{raised.type}: {raised.message}\n{raised.traceback}")
        if os.getpid() != pid:  # the subject has forked, and both processes came back
            os._exit(0)
        try:
            connection.sendall(frame(reply))
        except (BrokenPipeError, ConnectionResetError):
            return


class Worker:
    """A rank in its group: torch's process group, the subject, and what must be right between cases."""

    def __init__(self, setup: Setup, memory: int) -> None:
        folder = Path(setup.folder)
        self._setup = setup
        self._memory = memory
        self._spill = folder / f"rank-{setup.rank}.tensors"
        watch.write_crashes(folder / f"rank-{setup.rank}.stack")
        self._device = torch.device(setup.device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            torch.zeros(1, device=self._device)  # makes the context, which takes seconds: no part of a case
        torch.set_num_threads(1)
        dist.init_process_group(
            setup.backend,
            store=dist.FileStore(str(folder / "store"), setup.world_size),
            rank=setup.rank,
            world_size=setup.world_size,
            timeout=_NEVER,
        )
        self._groups: dict[tuple[tuple[int, ...], ...], Any] = {(): None}
        self._ledger = Ledger(folder / f"rank-{setup.rank}.ledger")
        self._process_state = ProcessState()
        self._barrier = Barrier(folder / "barrier", rank=setup.rank, world_size=setup.world_size)
        self._number = 0
        self._held = False
        self._factory: Factory | None = None
        self._description: Description | None = None
        self._inplace = False

    @property
    def mutilated(self) -> bool:
        """Whether the subject has closed a descriptor that this rank cannot do without."""
        return self._process_state.mutilated()

    def load(self, request: Load) -> Loaded:
        """Load the subject."""
        try:
            self._factory, self._description = load(request.target)
            self._inplace = request.target.inplace
        except SubjectError as error:
            return Loaded(error=describe(error, "load").message)
        return Loaded(description=self._description)

    def run(self, request: Run) -> RankAnswer | Skipped:
        """Run a case and write its tensors into the memory file; pass over one that must not be run ahead."""
        self._number += 1
        # What was passed over is not told at the barrier: a slower rank must still see what ended badly.
        self._held = request.ahead and (self._held or not self._barrier.passes(self._number - 1))
        if self._held:
            return Skipped(number=self._number)
        answer = self._run(request)
        if is_large(request.case):
            _give_memory_back()
        well = answer.observed.ending == "returned" and not answer.changed
        self._barrier.tell(self._number, well=well)
        return answer

    def _run(self, request: Run) -> RankAnswer:
        case = request.case
        assert self._factory is not None
        assert self._description is not None
        self._process_state.restore(case.seed)
        raise_limits()
        before = compilations()
        _bound_log()
        place = Place(
            rank=self._setup.rank, device=self._device, group=self._group(case), ledger=self._ledger
        )
        execution = Execution(
            case,
            self._factory,
            keywords=self._description.keywords,
            place=place,
            whole=self._setup.whole,
            inplace=self._inplace,
        )
        execution.run()
        compiled = compilations().since(before)
        told = {}
        if case.probe == "conversion" and execution.raised is None:
            keywords = self._description.keywords
            told = facts(case.seed, self._factory, group=place.group, keywords=keywords)
        captured = execution.tensors
        starts, size, spill = write(
            self._memory,
            [array for tensor in captured.values() for array in tensor.arrays],
            spill=self._spill,
            base=part(self._number),
        )
        offsets = iter(starts)
        headers = {
            name: tensor.header(*islice(offsets, len(tensor.arrays))) for name, tensor in captured.items()
        }
        observed = RankObservation(
            rank=self._setup.rank,
            ending="raised" if execution.raised else "returned",
            raised=execution.raised,
            modified=tuple(execution.modified),
            replaced=tuple(execution.replaced),
            ledger=self._ledger.take(),
            digest=execution.digest,
            seconds=execution.seconds,
            facts=told,
            compiled=compiled.functions,
            compile_seconds=compiled.seconds,
        )
        return RankAnswer(
            observed=observed, tensors=headers, size=size, spill=spill, changed=self._process_state.changed()
        )

    def bare(self, request: Bare) -> Timed:
        """Build the subject for each case, draw its data, then time the bare steps in one loop."""
        assert self._factory is not None
        assert self._description is not None
        factory, keywords = self._factory, self._description.keywords
        steps = []
        for case in request.cases:
            module = build(case, factory, keywords=keywords, device=self._device, group=self._group(case))
            steps.append(prepare(case, module, rank=self._setup.rank, device=self._device))
        return timed(steps)

    def _group(self, case: Case) -> Any:
        """Return this rank's process group; all ranks make those of a case together and in the same order."""
        if case.groups not in self._groups:
            made = [(ranks, dist.new_group(list(ranks), timeout=_NEVER)) for ranks in case.groups]
            self._groups[case.groups] = next(group for ranks, group in made if self._setup.rank in ranks)
        return self._groups[case.groups]


def _give_memory_back() -> None:
    """Give the system what is free: other groups wait beside this one, each with what it once took."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _bound_log() -> None:
    """Forget what was printed, by this rank's subject, beyond a megabyte."""
    if os.fstat(1).st_size > _LOG_BYTES:
        os.ftruncate(1, 0)

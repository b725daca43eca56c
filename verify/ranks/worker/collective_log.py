"""The ledger: every collective that a subject issues, as the dispatcher sees it.

Rules
-----
- It records only while a phase is set, and never changes what the collective does.
- Sends and receives are recorded like collectives; that they are not compared is the judge's business.
- An entry is also written to a file, before the operation begins: of a rank that hangs or dies in it, that
  is all that can be told.

Theory of operation
-------------------
Every call of a process group's method, from Python, from C++ or from a functional collective, goes through an
operator of the namespace `c10d`. A kernel registered for it at the dispatch key BackendSelect, which lies
under autograd and above every backend and is always switched on, runs first, writes an entry and hands over
to the backend. Unlike a TorchDispatchMode it costs nothing for other operators, works in autograd's threads,
and does not make torch.compile step aside. A reduction is an opaque object there: it is noted by a wrapper
around the group's Python methods, and left empty for a call from C++.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from properties.observation import Collective
from verify.ranks.worker.compiling import leave_alone

MAX_ENTRIES = 10_000
_NAMES = {
    "_allgather_base_": "all_gather_into_tensor",
    "_reduce_scatter_base_": "reduce_scatter_tensor",
    "allgather_": "all_gather",
    "allgather_coalesced_": "all_gather_coalesced",
    "allgather_into_tensor_coalesced_": "all_gather_into_tensor_coalesced",
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce_coalesced",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all_single",
    "recv_any_source_": "recv",
}
_REDUCING = ("allreduce", "allreduce_coalesced", "reduce", "reduce_scatter", "_reduce_scatter_base")
_NO_DATA = ("barrier", "monitored_barrier")
_IGNORED = ("check_for_nan",)


class Ledger:
    """The entries of the current case; `phase` says when, and an empty one that nothing is to be recorded.

    Args:
        path: The file that they are written to; None for none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.phase = ""
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._encoder = msgspec.json.Encoder()
        self._entries: list[Collective] = []
        self._reduction = ""
        self._library = torch.library.Library("c10d", "IMPL")
        key = torch._C.DispatchKey.BackendSelect
        self._below = torch._C._dispatch_keyset_full_after(key)
        for full_name in torch._C._dispatch_get_all_op_names():
            namespace, _, name = full_name.partition("::")
            if namespace == "c10d" and "." not in name and name not in _IGNORED:
                self._listen(name, key.name)
        for name in _REDUCING:
            self._note_reduction(name)

    def take(self) -> tuple[Collective, ...]:
        """Return the entries and start anew."""
        entries, self._entries = tuple(self._entries), []
        if entries and self._file is not None:
            os.ftruncate(self._file, 0)
        return entries

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Record what is issued inside, as of `phase`."""
        self.phase = phase
        try:
            yield
        finally:
            self.phase = ""

    def _listen(self, name: str, key: str) -> None:
        operator = getattr(torch.ops.c10d, name).default
        arguments = [argument.name for argument in operator._schema.arguments]

        def kernel(keyset: Any, *values: Any, **named: Any) -> Any:
            if self.phase and len(self._entries) < MAX_ENTRIES:
                self._note(self._entry(name, dict(zip(arguments, values, strict=False)) | named))
            return operator.redispatch(keyset & self._below, *values, **named)

        leave_alone(kernel)
        self._library.impl(name, kernel, key, with_keyset=True)

    def _note(self, entry: Collective) -> None:
        self._entries.append(entry)
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.write(self._file, self._encoder.encode(entry) + b"\n")

    def _entry(self, name: str, values: dict[str, Any]) -> Collective:
        short = _NAMES.get(name, name.rstrip("_"))
        tensors: list[torch.Tensor] = []
        if short not in _NO_DATA:
            for argument, value in values.items():
                if not argument.startswith("output"):
                    _collect(value, tensors)
        reduction, self._reduction = self._reduction, ""
        return Collective(
            op=short,
            phase=self.phase,
            group=_ranks_of(values.get("process_group")),
            reduction=reduction if "reduce_op" in values else "",
            dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for tensor in tensors),
            shapes=tuple(tuple(tensor.shape) for tensor in tensors),
            bytes=0 if short == "recv" else sum(tensor.nbytes for tensor in tensors),
        )

    def _note_reduction(self, name: str) -> None:
        original = getattr(dist.ProcessGroup, name)

        @functools.wraps(original)
        def noting(*values: Any, **named: Any) -> Any:
            if self.phase:
                self._reduction = _reduction_of((*values, *named.values()))
            return original(*values, **named)

        leave_alone(noting)
        setattr(dist.ProcessGroup, name, noting)


def _collect(value: Any, into: list[torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        into.append(value)
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, into)


def _reduction_of(values: tuple[Any, ...]) -> str:
    """Return the name of the reduction among a method's arguments; a sum if none is given."""
    for value in values:
        operation = getattr(value, "reduceOp", value)
        if isinstance(operation, dist.ReduceOp.RedOpType):
            return str(operation.name).lower()
        if isinstance(operation, dist.ReduceOp):
            return str(operation.op.name).lower()
    return "sum"


def _ranks_of(group: Any) -> tuple[int, ...]:
    with contextlib.suppress(Exception):
        return tuple(sorted(dist.get_process_group_ranks(dist.ProcessGroup.unbox(group))))
    return ()

"""A rank of the peers' checks: a process of a gloo group that runs one subject against torch's batch norm."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch.testing import assert_close

from benchmarks.peers.checks import Check
from benchmarks.peers.converted_module import conversion_differences

_SECONDS = timedelta(seconds=4)
Factory = Callable[..., Any]


def serve(rank: int, world: int, store: str, subject: str, orders: Connection) -> None:
    """Join the group and answer each `Check` with "" or what differed, until None comes.

    What is raised outside a comparison is answered with "raised: ...": the group is then of no more use.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, world), rank=rank, world_size=world, timeout=_SECONDS
    )
    module, _, name = subject.partition(":")
    groups: dict[tuple[int, ...], Any] = {}
    orders.send("ready")
    while (check := orders.recv()) is not None:
        try:
            factory = getattr(importlib.import_module(module), name)
            own = _group(check, rank, groups)
            compare = conversion_differences if check.conversion else _differences
            orders.send(compare(check, factory, rank, own))
        except BaseException:
            orders.send(f"raised: {traceback.format_exc(limit=-2)}")


def _group(check: Check, rank: int, made: dict[tuple[int, ...], Any]) -> Any:
    """Return the process group of `rank`, None for the whole world; every rank makes all of them."""
    for members in check.groups:
        if members not in made:
            made[members] = dist.new_group(list(members), timeout=_SECONDS)
    return next((made[members] for members in check.groups if rank in members), None)


def _differences(check: Check, factory: Factory, rank: int, group: Any) -> str:
    """Return what differs from batch norm on the gathered batch, all steps together; "" if nothing does."""
    members = next((one for one in check.groups if rank in one), tuple(range(len(check.batches))))
    dtype = torch.float16 if check.half_module else torch.float32
    subject = factory(
        check.channels,
        affine=check.affine,
        track_running_stats=check.tracking,
        process_group=group,
        dtype=dtype,
    )
    reference = torch.nn.SyncBatchNorm(check.channels, affine=check.affine, dtype=torch.float64)
    _initialise(reference, subject)
    found: list[str] = []
    for step in range(check.steps):
        _compare_step(check, subject, reference, found, rank=rank, members=members, step=step)
    if check.tracking and not check.half_module:
        subject.eval()
        x, _ = _data(check, rank, step=check.steps)
        _note(found, "evaluation", subject(x), _reference(reference, x.double(), training=False).to(x.dtype))
    return "; ".join(dict.fromkeys(found))


def _initialise(reference: Any, subject: Any) -> None:
    """Give both modules the same random weight and bias; buffers are at their defaults."""
    if reference.weight is None:
        return
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name in ("weight", "bias"):
            values = torch.randn(reference.num_features, generator=generator).half()
            getattr(reference, name).copy_(values)
            getattr(subject, name).copy_(values)


def _data(check: Check, rank: int, *, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input and cotangent of one rank and step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    shape = (check.batches[rank], check.channels, *check.spatial)
    x = torch.randn(shape, generator=generator)
    g = torch.ones(shape) if check.loss == "sum" else torch.randn(shape, generator=generator)
    if check.half:
        x, g = x.half(), g.half()
    if check.channels_last:
        x, g = (one.contiguous(memory_format=torch.channels_last) for one in (x, g))
    return x, g


def _reference(module: Any, x: torch.Tensor, *, training: bool) -> torch.Tensor:
    """Return torch's batch norm of a whole batch in float64, at its buffers' momentum of 0.1."""
    if training:
        module.num_batches_tracked.add_(1)
    return torch.nn.functional.batch_norm(
        x, module.running_mean, module.running_var, module.weight, module.bias, training, 0.1, module.eps
    )


def _compare_step(
    check: Check,
    subject: Any,
    reference: Any,
    found: list[str],
    *,
    rank: int,
    members: tuple[int, ...],
    step: int,
) -> None:
    """Train both for one step and note what differs on this rank."""
    parts = [_data(check, member, step=step) for member in members]
    whole = torch.cat([x for x, _ in parts]).double().requires_grad_()
    x, g = (one.clone() for one in parts[members.index(rank)])
    x.requires_grad_()
    start = sum(check.batches[member] for member in members[: members.index(rank)])
    own = slice(start, start + check.batches[rank])
    for module in (subject, reference):
        module.zero_grad()
    y = subject(x)
    loss = y.sum() if check.loss == "sum" else (y * g).sum()
    loss.backward()
    expected = _reference(reference, whole, training=True)
    expected.backward(torch.cat([cotangent for _, cotangent in parts]).double())
    _note(found, "output", y, expected[own].to(x.dtype))
    if x.numel():
        _note(found, "grad_input", x.grad, whole.grad[own].to(x.dtype))
    for name in ("running_mean", "running_var", "num_batches_tracked") if check.tracking else ():
        dtype = torch.float16 if check.half_module else torch.float32
        wanted = getattr(reference, name)
        _note(found, name, getattr(subject, name), wanted.to(dtype) if wanted.is_floating_point() else wanted)
    for name in ("weight", "bias") if check.affine and not check.half_module else ():
        _note_parameter(found, name, subject, reference, members)


def _note_parameter(
    found: list[str], name: str, subject: Any, reference: Any, members: tuple[int, ...]
) -> None:
    """Compare the sum of the ranks' gradients, which data parallelism gives, with the whole batch's."""
    own = getattr(subject, name)
    total = torch.zeros(own.shape) if own.grad is None else own.grad.detach().float().clone()
    dist.all_reduce(total, group=subject.process_group if len(members) < dist.get_world_size() else None)
    _note(found, f"grad_{name}", total.to(own.dtype), getattr(reference, name).grad.to(own.dtype))


def _note(found: list[str], what: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    try:
        assert_close(actual, expected)
    except AssertionError as error:
        found.append(f"{what}: {str(error).splitlines()[0].rstrip('!')}")

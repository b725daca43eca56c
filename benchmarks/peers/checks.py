"""Checks in the style of today's suites of synchronized batch norm, written from their description.

What they have in common (PyTorch's `test_DistributedDataParallel_SyncBatchNorm*`, apex's
`two_gpu_unit_test`, `test_groups` and `two_gpu_test_different_batch_size`, mmcv's and fairscale's tests): a
handful of fixed shapes on 2 or 4 ranks, batch norm on the gathered batch as the reference,
`torch.testing.assert_close` with its default tolerances. Here they are at their best: all of them compare
outputs, running statistics and all gradients on every rank and step, and evaluate after training, which none
of them does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Loss = Literal["sum", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One hand-written test.

    Attributes:
        name: What it is about.
        batches: Samples on each rank.
        spatial: Spatial sizes, the same on all ranks.
        channels: Number of features.
        loss: `sum`, the loss is y.sum(); `random`, the output meets random cotangents.
        half: The input is float16 (apex) with float32 parameters.
        half_module: The module is float16 as well; gradients of its parameters and evaluation, which round in
            every step, are not compared (PyTorch's test for half compares no values at all).
        affine: As in torch.
        tracking: As `track_running_stats`; without it nothing is evaluated.
        channels_last: Input and cotangent are in that format.
        groups: Process groups; empty for the whole world.
        steps: Training steps, each with another batch, before an evaluation.
        conversion: Convert a batch norm and an instance norm, and compare classes, state and process group
            (PyTorch's `test_convert_sync_bn`); nothing is run.
    """

    name: str
    batches: tuple[int, ...]
    spatial: tuple[int, ...]
    channels: int = 10
    loss: Loss = "sum"
    half: bool = False
    half_module: bool = False
    affine: bool = True
    tracking: bool = True
    channels_last: bool = False
    groups: tuple[tuple[int, ...], ...] = ()
    steps: int = 3
    conversion: bool = False


def _fixed(loss: Loss) -> tuple[Check, ...]:
    """Return the fixed shapes with equal splits on two ranks."""
    return (
        Check(name="images", batches=(5, 5), spatial=(4, 4), loss=loss),
        Check(name="features", batches=(4, 4), spatial=(), channels=4, loss=loss),
        Check(name="sequences", batches=(2, 2), spatial=(9,), channels=6, loss=loss),
        Check(name="one sample a rank", batches=(1, 1), spatial=(4, 4), channels=3, loss=loss),
        Check(
            name="channels last", batches=(4, 4), spatial=(5, 3), channels=8, channels_last=True, loss=loss
        ),
        Check(name="no affine", batches=(4, 4), spatial=(3, 3), affine=False, loss=loss),
        Check(name="no running statistics", batches=(4, 4), spatial=(3, 3), tracking=False, loss=loss),
        Check(name="half", batches=(5, 5), spatial=(4, 4), half=True, loss=loss),
        Check(
            name="half module",
            batches=(4, 4),
            spatial=(3, 3),
            half=True,
            half_module=True,
            steps=1,
            loss=loss,
        ),
        Check(name="conversion", batches=(1, 1), spatial=(), conversion=True),
    )


_UNEVEN = (
    Check(name="uneven images", batches=(2, 5), spatial=(4, 4), loss="random"),
    Check(name="uneven features", batches=(3, 8), spatial=(), channels=5, loss="random"),
    Check(name="uneven half", batches=(1, 6), spatial=(3, 3), half=True, loss="random"),
)
_FOUR = (
    Check(name="four ranks", batches=(2, 3, 1, 4), spatial=(3, 3), loss="random"),
    Check(name="groups of two", batches=(2, 3, 1, 4), spatial=(3, 3), groups=((0, 1), (2, 3)), loss="random"),
    Check(name="empty rank", batches=(3, 0, 2, 4), spatial=(3, 3), loss="random"),
)
SUITES: dict[str, tuple[Check, ...]] = {
    "a": _fixed("sum"),
    "b": _fixed("random"),
    "c": _fixed("random") + _UNEVEN,
    "d": _fixed("random") + _UNEVEN + _FOUR,
}
MEANS = {
    "a": "equal splits on 2 ranks, y.sum()",
    "b": "equal splits, random cotangents",
    "c": "and uneven splits",
    "d": "and 4 ranks, groups, an empty rank",
}

"""Hygiene: what a subject may have changed in its process, put right before the next case.

Every case starts from the same state, whatever ran before it, so that its replay alone gives the same bits.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

Setting = tuple[Callable[[], object], object, Callable[[], object]]

_SMALLEST = sys.float_info.min


class Hygiene:
    """The state in which a rank started, and the way back to it."""

    def __init__(self) -> None:
        self._folder = os.getcwd()  # noqa: PTH109 - compared as a string, twice a case
        self._modes = _mode_depths()
        self._world = dist.group.WORLD if dist.is_initialized() else None
        self._settings: tuple[Setting, ...] = (
            (torch.get_default_dtype, torch.float32, lambda: torch.set_default_dtype(torch.float32)),
            (torch.get_num_threads, 1, lambda: torch.set_num_threads(1)),
            (torch.is_grad_enabled, True, lambda: torch.set_grad_enabled(True)),
            (
                torch.are_deterministic_algorithms_enabled,
                False,
                lambda: torch.use_deterministic_algorithms(mode=False),
            ),
            (torch.is_anomaly_enabled, False, lambda: torch.autograd.set_detect_anomaly(False)),
            (_flushes_subnormals, False, lambda: torch.set_flush_denormal(False)),
            (
                torch.get_float32_matmul_precision,
                torch.get_float32_matmul_precision(),
                lambda: torch.set_float32_matmul_precision("highest"),
            ),
            (os.getcwd, self._folder, lambda: os.chdir(self._folder)),
        )

    def restore(self, seed: int) -> None:
        """Put settings right and seed every generator, before a case."""
        for read, wanted, write in self._settings:
            if read() != wanted:
                write()
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the subject may use the global generator
        torch.default_generator.manual_seed(seed % 2**63)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed % 2**63)

    def intact(self) -> bool:
        """Return whether nothing has changed, after a case, that cannot be put right."""
        return (
            dist.is_initialized()
            and dist.group.WORLD is self._world
            and _mode_depths() == self._modes
            and not torch.is_autocast_enabled("cpu")
            and not torch.is_inference_mode_enabled()
        )


def _flushes_subnormals() -> bool:
    return _SMALLEST * 0.5 == 0.0


def _mode_depths() -> tuple[int, ...]:
    """Return how many function and dispatch modes are active, as far as this torch can tell."""
    names = ("_len_torch_function_stack", "_len_torch_dispatch_stack")
    return tuple(int(getattr(torch._C, name)()) for name in names if hasattr(torch._C, name))

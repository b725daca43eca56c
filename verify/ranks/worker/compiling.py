"""Compiling: what `torch.compile` does in a rank, as far as a case must know of it.

Rules
-----
- A subject that is compiled is judged compiled. Dynamo gives a function up after a few compilations (eight),
  and runs it uncompiled; since cases differ in shape, dtype and options, its limits are raised, and that is
  told.
- What is ours and runs in the midst of a compiled subject (`verify.ranks.worker.collective_log`) is no
  business of dynamo: it would compile that, too, and fail where no user's code does.
- Nothing here imports dynamo: most subjects never do, and it takes as long as torch itself.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

RECOMPILE_LIMIT = 1 << 16
"""Compilations of one function, and of all together, after which dynamo runs it uncompiled."""
_LIMITS = ("recompile_limit", "accumulated_recompile_limit")
_FRAMES, _LAZY = "_compile.compile_inner", "backward._backward_impl"


@dataclass(frozen=True, slots=True)
class Compilations:
    """How many functions dynamo has compiled in this process, and the seconds that this took."""

    functions: int = 0
    seconds: float = 0.0

    def since(self, before: Compilations) -> Compilations:
        """Return what was added; the subject may have reset the counts."""
        if self.functions < before.functions or self.seconds < before.seconds:
            return self
        return Compilations(self.functions - before.functions, self.seconds - before.seconds)


def leave_alone(function: Callable[..., Any]) -> None:
    """Have dynamo compile neither `function` nor what that calls, where it finds it on its way."""
    frames: Any = getattr(torch._C._dynamo, "eval_frame", None)
    with contextlib.suppress(AttributeError):  # another torch may have other names for it
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))


def raise_limits() -> None:
    """Have dynamo, if it is there, compile as often as cases differ."""
    config: Any = sys.modules.get("torch._dynamo.config")
    for name in _LIMITS:
        if config is not None and getattr(config, name, RECOMPILE_LIMIT) < RECOMPILE_LIMIT:
            setattr(config, name, RECOMPILE_LIMIT)


def compilations() -> Compilations:
    """Return what dynamo has compiled so far: functions, and the backwards of some when they first ran."""
    metrics: Any = getattr(sys.modules.get("torch._dynamo.utils"), "compilation_time_metrics", {})
    frames, lazy = metrics.get(_FRAMES, ()), metrics.get(_LAZY, ())
    return Compilations(len(frames), float(sum(frames) + sum(lazy)))

"""The host: how jax computes in this process, for the reference: on the CPU, in float64, with its cache.

The process may be a user's test run whose own jax works on a GPU: what is set here leaves that as it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jax
import platformdirs

CACHE_OPTION = "jax_compilation_cache_dir"
_PLATFORMS = "jax_platforms"
_THREADS = "NPROC"
_AHEAD = "XLA_PYTHON_CLIENT_PREALLOCATE"


def start(*, threads: int | None = None, cpu_only: bool = False) -> None:
    """Settle how jax computes in this process, unless it has begun to compute.

    Args:
        threads: Of the CPU, None for as many as there are cores. A step is small: more threads take more of
            the cores' time, and hardly less of the clock's. XLA reads the number once, from the environment;
            if that names one, it stands.
        cpu_only: Have jax look for no other device, in a process that is ours alone: a GPU is the ranks'.
            Devices that the user names (JAX_PLATFORMS) stand.
    """
    if cpu_only and not getattr(jax.config, _PLATFORMS):
        jax.config.update(_PLATFORMS, "cpu")
    if threads is not None:
        _cpu(threads)


@contextlib.contextmanager
def precise() -> Iterator[None]:
    """Let jax compute in float64 on the CPU inside, whatever devices it finds and the caller configured."""
    double = True
    with jax.enable_x64(double), jax.default_device(_cpu(None)):
        yield


def _cpu(threads: int | None) -> jax.Device:
    """Return the CPU of jax; the first call has jax look for all its devices.

    Where it finds a GPU, it would take most of that one's memory ahead, which the ranks need.
    """
    global _found
    if _found is None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_unless_given(_AHEAD, "false"))
            if threads is not None:
                stack.enter_context(_unless_given(_THREADS, str(threads)))
            _found = jax.local_devices(backend="cpu")[0]
    return _found


_found: jax.Device | None = None


@contextlib.contextmanager
def _unless_given(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment inside, if it is not set."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@cache
def configure_cache() -> Path:
    """Switch jax's persistent compilation cache on, in the user's cache folder, and return the folder.

    A cache folder that the user has configured for jax is left alone.
    """
    configured: str | None = getattr(jax.config, CACHE_OPTION)
    folder = Path(configured) if configured else Path(platformdirs.user_cache_dir("syncbn-verify")) / "jax"
    if not configured and os.access(_nearest_existing(folder), os.W_OK):
        jax.config.update(CACHE_OPTION, str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())

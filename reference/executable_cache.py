"""Executables: compiled functions on disk, so that another process neither traces nor compiles them.

jax's persistent compilation cache spares the compiling alone: its key is made from the lowered program, and
tracing and lowering a step takes four times as long as loading its executable does.

Rules
-----
- What is loaded is what this code would compile here: the versions, this package's sources, XLA's flags and
  the processor are in the name of the file.
- An executable is kept only if, read back, it gives bit for bit what it gave before. One that came out of
  jax's own cache does not: the program is then compiled once more under a name that no cache has.
- A file that cannot be read or written costs time alone: the function is compiled as ever.
- The folder is the user's own and as trusted as jax's cache beside it: what lies there is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import tempfile
import uuid
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reference.uninterrupted import uninterrupted

_OPTIONS: dict[str, str | bool] = {"xla_cpu_prefer_vector_width": "512"}
"""Registers of 512 bits, where the processor has them. XLA uses half of each unless told, and a step takes a
third longer."""


class Executable:
    """A function of arrays, compiled for the shapes of its first call, or loaded.

    Args:
        function: A jax function of arrays, without constants.
        name: Of the file, unique among those of the folder.
        like: What the function returns, with anything in place of the arrays.
        folder: Where executables are kept; it need not be there.
    """

    def __init__(self, function: Callable[..., Any], name: str, *, like: Any, folder: Path) -> None:
        self._function, self._like = function, like
        self._path = folder / f"{name}-{_key()}.executable"
        self._call: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns."""
        if self._call is None:
            self._call = self._loaded(arguments) or self._compiled(arguments)
        return self._call(*arguments)

    def load(self, *like: Any) -> None:
        """Load it, if it is kept; `like` is what it will be called with, with anything in place of arrays."""
        if self._call is None:
            self._call = self._loaded(like)

    @property
    def kept(self) -> bool:
        """Whether its file is there."""
        return self._path.exists()

    def keep(self, *arguments: Any) -> None:
        """Compile and keep it, unless it is kept."""
        if not self.kept:
            self._call = self._compiled(arguments)

    def _loaded(self, arguments: tuple[Any, ...]) -> Callable[..., Any] | None:
        try:
            return _read(self._path.read_bytes(), arguments, self._like)
        except Exception:  # A file of another time, or cut off: whatever reading it raises.
            return None

    def _compiled(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        made = self._made(arguments, _key())
        # Whatever an experimental part of jax, or the disk, has against it.
        with contextlib.suppress(Exception):
            written = _written(made)
            if not self._agrees(written, made, arguments):
                written = _written(self._made(arguments, uuid.uuid4().hex))
            if self._agrees(written, made, arguments):
                _replace(self._path, written)
        return made

    def _made(self, arguments: tuple[Any, ...], suffix: str) -> Callable[..., Any]:
        """Return the function, compiled: `suffix` is part of the program's name, and so of jax's key."""

        def named(*given: Any) -> Any:
            return self._function(*given)

        named.__name__ = f"{self._path.stem.partition('-')[0]}_{suffix}"
        lowered = jax.jit(named).lower(*arguments)
        made: Callable[..., Any]
        with uninterrupted():
            try:
                made = lowered.compile(compiler_options=_OPTIONS)
            except jax.errors.JaxRuntimeError:  # an XLA that does not know them
                made = lowered.compile()
        return made

    def _agrees(self, written: bytes, made: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
        """Return whether `written`, read back, gives what `made` gives."""
        with contextlib.suppress(Exception):  # jax says only when it is called what is not in it
            return _agree(made, _read(written, arguments, self._like), arguments)
        return False


def _written(made: Any) -> bytes:
    from jax.experimental.serialize_executable import serialize

    written: bytes = serialize(made)[0]
    return written


def _read(written: bytes, arguments: tuple[Any, ...], like: Any) -> Callable[..., Any]:
    from jax.experimental.serialize_executable import deserialize_and_load

    device = jax.local_devices(backend="cpu")[0]
    loaded: Callable[..., Any] = deserialize_and_load(
        written,
        jax.tree.structure((arguments, {})),
        jax.tree.structure(like),
        backend=device.client,
        execution_devices=[device],
    )
    return loaded


def _agree(one: Callable[..., Any], other: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    results = (jax.tree.leaves(call(*arguments)) for call in (one, other))
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*results, strict=True))


def _replace(path: Path, written: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(written)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@cache
def _key() -> str:
    """Return hexadecimal digits that differ wherever an executable may."""
    state = hashlib.blake2b(digest_size=10)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        state.update(source.read_bytes())
    versions = (jax.__version__, version("jaxlib"), np.__version__, sys.version, platform.machine())
    state.update(repr((*versions, os.environ.get("XLA_FLAGS", ""), _processor())).encode())
    return state.hexdigest()


def _processor() -> list[str]:
    """Return what Linux says of the first processor: XLA compiles for its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return [platform.processor()]
    return [line for line in lines if line.startswith(("flags", "Features", "model", "cpu family", "CPU"))]

"""An executable is kept, and loaded in place of compiling; what is wrong with its file costs time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import reference
from reference import executable_cache
from reference.executable_cache import Executable
from reference.host import precise


class Result(NamedTuple):
    """What the function returns."""

    total: object
    twice: object


ROOT = Path(reference.__file__).parents[1]
LIKE = Result(0, 0)
X = np.arange(3.0)


def function(x: object) -> Result:
    return Result(jnp.sum(x), 2.0 * x)


def untraceable(x: object) -> Result:
    raise AssertionError("traced, though an executable was kept")


def called(folder: Path, wanted=function, x=X) -> Result:
    with precise():
        return arrays(Executable(wanted, "function", like=LIKE, folder=folder)(x))


def arrays(result: Result) -> Result:
    assert isinstance(result, Result)
    return Result(*map(np.asarray, result))


def is_right(result: Result) -> bool:
    return result.total == 3.0 and np.array_equal(result.twice, 2 * X)


def kept(folder: Path) -> list[Path]:
    return list(folder.glob("*"))


def test_it_is_kept_and_loaded_without_tracing(tmp_path):
    assert is_right(called(tmp_path / "new"))
    (path,) = kept(tmp_path / "new")
    assert path.name.endswith(".executable")
    assert is_right(called(tmp_path / "new", untraceable))


def test_it_is_compiled_once_in_a_process(tmp_path):
    traced = []

    def counted(x):
        traced.append(x)
        return function(x)

    with precise():
        one = Executable(counted, "function", like=LIKE, folder=tmp_path)
        assert is_right(arrays(one(X)))
        times = len(traced)
        assert all(is_right(arrays(one(X))) for _ in range(3))
    assert len(traced) == times <= 2  # twice if jax's own cache had it


@pytest.mark.parametrize("damage", ["cut off", "changed", "empty", "another"])
def test_a_damaged_file_is_compiled_anew_and_replaced(tmp_path, damage):
    called(tmp_path)
    (path,) = kept(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(
        {"cut off": whole[:-9], "changed": b"x" + whole[1:], "empty": b"", "another": b"(lp0\n."}[damage]
    )
    assert is_right(called(tmp_path))
    assert is_right(called(tmp_path, untraceable))


def test_another_version_compiles_its_own(tmp_path, monkeypatch):
    called(tmp_path)
    monkeypatch.setattr(executable_cache, "_key", lambda: "another")
    with pytest.raises(AssertionError, match="traced"):
        called(tmp_path, untraceable)
    assert is_right(called(tmp_path))
    assert len(kept(tmp_path)) == 2


def test_one_that_reads_back_differently_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(executable_cache, "_read", lambda *_: lambda x: Result(np.float64(4), 2 * x))
    assert is_right(called(tmp_path))
    assert kept(tmp_path) == []


SCRIPT = """
import sys
from pathlib import Path
import jax, numpy as np
from reference.executable_cache import Executable
from reference.host import precise

jax.config.update("jax_compilation_cache_dir", sys.argv[1] + "/jax")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
folder = Path(sys.argv[1], "ours")

def called():
    jax.clear_caches()
    with precise():
        Executable(lambda x: (2.0 * x, x), "name", like=(0, 0), folder=folder)(np.arange(3.0))
    return list(folder.glob("*.executable"))

(path,) = called()
before = len(list(Path(sys.argv[1], "jax").iterdir()))
path.unlink()
(path,) = called()
assert before and len(list(Path(sys.argv[1], "jax").iterdir())) > before
"""


def test_one_that_only_jax_has_kept_is_compiled_again_and_kept(tmp_path):
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, cwd=ROOT)


def test_a_folder_that_cannot_be_made_costs_nothing(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert is_right(called(tmp_path / "file" / "below"))


def test_an_unwritable_file_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(self: Path, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fails)
    assert is_right(called(tmp_path))
    assert kept(tmp_path) == []

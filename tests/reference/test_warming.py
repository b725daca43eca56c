"""Warming: another process keeps what this one will need, and lives no longer than this one."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from properties.case import Case
from properties.domain import Contract
from properties.expectation import group_step
from properties.expectation.expect import expect
from reference import program, warming
from reference.executable_cache import Executable
from reference.padding import COMMON, REPEATED, Bucket
from verify.engine.examiner import machinery


class Reached(Exception):
    """The program was called."""


CASES = [
    Case(batches=(2, 1)),
    Case(batches=(9, 8), channels=100, spatial=((3,),), dtype="bfloat16"),
    Case(batches=(40_000, 1), channels=1),
    Case(batches=(1, 3000), channels=64),
    Case(batches=(129, 129), channels=1024),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.batches))
def test_a_blank_input_is_what_the_program_of_its_bucket_is_called_with(case, monkeypatch):
    called = []

    def compiled_step(bucket):
        def call(given):
            called.append((bucket, given))
            raise Reached

        return call

    monkeypatch.setattr(group_step, "compiled_step", compiled_step)
    with pytest.raises(Reached):
        expect(case, Contract(), "A")
    ((bucket, given),) = called
    assert bucket in (*COMMON, *REPEATED)
    shapes = [[(leaf.shape, leaf.dtype) for leaf in one] for one in (given, warming.blank(bucket))]
    assert shapes[0] == shapes[1]


def test_what_is_kept_is_not_compiled_again(tmp_path):
    compiled = []

    def double(x):
        compiled.append(x)
        return 2 * x

    first, second = (Executable(double, "double", like=0, folder=tmp_path) for _ in range(2))
    assert not first.kept
    first.keep(np.zeros(3))
    assert first.kept
    number = len(compiled)
    assert number
    second.keep(np.zeros(3))
    assert second(np.ones(3)).tolist() == [2, 2, 2]
    assert len(compiled) == number


class Compiled:
    """A program of which it is noted when it is kept."""

    def __init__(self, bucket, kept):
        self.bucket, self._kept = bucket, kept

    @property
    def kept(self):
        return self.bucket in self._kept

    def keep(self, given):
        assert given.x.shape == self.bucket[:3]
        self._kept.append(self.bucket)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    found: list[Bucket] = []
    monkeypatch.setattr(warming, "compiled_step", lambda bucket: Compiled(bucket, found))
    monkeypatch.setattr(warming, "configure_cache", lambda: tmp_path / "new" / "jax")
    monkeypatch.setattr(warming, "start", lambda **options: None)
    monkeypatch.setattr(warming, "_end_with_the_input", lambda: None)
    monkeypatch.setattr(os, "nice", lambda by: None)
    return found


def test_from_the_rarest_to_the_commonest_and_one_process_at_a_time(kept, tmp_path):
    warming.main()
    assert kept == [*reversed(COMMON), *REPEATED]
    kept.clear()
    with (tmp_path / "new" / "jax" / "warming.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        warming.main()
    assert kept == []


@pytest.mark.parametrize(("cores", "lacking", "starts"), [(2, 15, 1), (1, 15, 0), (2, 2, 0)])
def test_a_process_is_started_where_it_is_worth_it_and_ends_with_this_one(
    kept, monkeypatch, cores, lacking, starts
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(warming, "_RUN", "import sys; sys.stdin.read()")
    kept.extend(COMMON[lacking:])
    processes = []
    popen = subprocess.Popen

    def spy(*arguments, **options):
        processes.append(popen(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", spy)
    with warming.warmed():
        assert [process.poll() for process in processes] == [None] * starts
    assert all(process.returncode is not None for process in processes)


def test_the_process_has_the_cache_and_the_sources_of_this_one(tmp_path, monkeypatch):
    """For real, but that it says where it would keep a program, and compiles none."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(warming, "configure_cache", lambda: tmp_path)
    told = tmp_path / "told"
    imports = warming._RUN.partition(" from ")[0]
    says = f"open({str(told)!r}, 'w').write(str(compiled_step(COMMON[0])._path))"
    code = f"{imports} from reference.program import compiled_step, COMMON; {says}; sys.stdin.read()"
    monkeypatch.setattr(warming, "_RUN", code)
    monkeypatch.setattr(warming, "compiled_step", lambda bucket: Compiled(bucket, []))
    with warming.warmed():
        for _ in range(600):
            if told.exists() and told.read_text():
                break
            time.sleep(0.1)
    name = program.compiled_step(COMMON[0])._path.name
    assert Path(told.read_text()) == tmp_path / name


def test_the_real_parts_have_it():
    assert machinery().warmed is warming.warmed

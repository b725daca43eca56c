"""The memory file: what is written is what is read, in memory or beside it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from verify.ranks import shared_tensors
from verify.ranks.messages import TensorHeader

ARRAYS = [
    np.arange(5, dtype=np.float64),
    np.zeros((0, 3), np.float32),
    np.array(7, np.int64),
    np.arange(300, dtype=np.uint16).reshape(3, 100),
]


@pytest.fixture
def descriptor():
    made = shared_tensors.create()
    yield made
    os.close(made)


def headers(arrays, starts):
    return {
        f"t.{index}": TensorHeader(
            dtype=array.dtype.name, numpy=array.dtype.name, shape=array.shape, strides=(), requires_grad=True,
            device="cpu", aliases_input=False, offset=start,
        )
        for index, (array, start) in enumerate(zip(arrays, starts, strict=True))
    }  # fmt: skip


@pytest.mark.parametrize("short", [False, True])
def test_arrays_come_back(descriptor, tmp_path, monkeypatch, short):
    monkeypatch.setattr(shared_tensors, "_SMALL", 0 if short else 1 << 24)
    monkeypatch.setattr(shared_tensors, "free_bytes", lambda: 0)
    beside = tmp_path / "rank-0.tensors"
    starts, size, spill = shared_tensors.write(descriptor, ARRAYS, spill=beside)
    assert spill == (str(beside) if short else "")
    assert beside.exists() is short
    found = shared_tensors.read(descriptor, headers(ARRAYS, starts), size=size, spill=spill)
    for tensor, array in zip(found.values(), ARRAYS, strict=True):
        assert tensor.array.dtype == array.dtype
        assert tensor.shape == array.shape
        assert tensor.array.tobytes() == array.tobytes()
    assert not beside.exists()


def test_what_was_read_survives_the_next_write(descriptor, tmp_path):
    first = [np.full(10, 1.0)]
    starts, size, _ = shared_tensors.write(descriptor, first, spill=Path(tmp_path / "x"))
    found = shared_tensors.read(descriptor, headers(first, starts), size=size)
    shared_tensors.write(descriptor, [np.full(10, 2.0)], spill=Path(tmp_path / "x"))
    assert found["t.0"].array.tolist() == [1.0] * 10


def test_many_arrays_and_partial_writes_come_back(descriptor, tmp_path, monkeypatch):
    original = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, pieces, at: original(fd, [pieces[0][:7]], at))
    many = [np.full(3, index, np.int32) for index in range(700)]
    starts, size, _ = shared_tensors.write(descriptor, many, spill=tmp_path / "x")
    found = shared_tensors.read(descriptor, headers(many, starts), size=size)
    assert [tensor.array[2] for tensor in found.values()] == list(range(700))


def test_memory_of_a_large_observation_is_given_back(descriptor, tmp_path):
    large = [np.ones(shared_tensors.KEPT_BYTES // 8 + 1)]
    starts, size, _ = shared_tensors.write(descriptor, large, spill=tmp_path / "x")
    shared_tensors.read(descriptor, headers(large, starts), size=size)
    assert os.fstat(descriptor).st_size == 0


def test_a_file_that_is_too_short_is_an_error(descriptor, tmp_path):
    starts, size, _ = shared_tensors.write(descriptor, ARRAYS, spill=tmp_path / "x")
    with pytest.raises(OSError, match="memory file"):
        shared_tensors.read(descriptor, headers(ARRAYS, starts), size=size + 1)

"""Tensors as plain data: bits survive, and strangers' data is validated."""

import base64
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from properties.observation import Tensor, as_float64, tensor_from_data, tensor_to_data

ARRAYS = st.sampled_from(["float64", "float32", "float16", "uint16", "int64", "bool"]).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
)


@given(ARRAYS, st.booleans())
def test_a_tensor_survives_json_bit_for_bit(array, flag):
    dtype = "bfloat16" if array.dtype == np.uint16 else array.dtype.name
    one = Tensor(dtype=dtype, array=array, strides=(1,) * array.ndim, requires_grad=flag, aliases_input=flag)
    again = tensor_from_data(json.loads(json.dumps(tensor_to_data(one))))
    assert again.array.tobytes() == array.tobytes()
    assert (again.array.dtype, again.shape, again.dtype) == (array.dtype, array.shape, dtype)
    assert (again.strides, again.requires_grad, again.aliases_input) == (one.strides, flag, flag)


def test_data_is_little_endian_whatever_the_array():
    array = np.array([1.0, 2.0], ">f4")
    data = tensor_to_data(Tensor(dtype="float32", array=array))
    assert base64.b64decode(data["data"]) == bytes.fromhex("0000803f00000040")


GOOD = tensor_to_data(Tensor(dtype="float32", array=np.zeros((2, 3), np.float32)))
SAMPLED = {**GOOD, "positions": [0, 19], "whole": [4, 3, 5]}
FOLDED = {**GOOD, "positions": [[0, 19, 3], [5, 6, 7]], "whole": [4, 3, 5], "held": 1, "bits": "ab"}


def test_a_folded_tensor_survives_json():
    again = tensor_from_data(json.loads(json.dumps(tensor_to_data(tensor_from_data(FOLDED)))))
    assert (again.positions.tolist(), again.shape) == (FOLDED["positions"], (4, 3, 5))
    assert (again.array.shape, again.held, again.bits) == ((2, 3), 1, "ab")
    assert again.index((0, 1)) == (3, 1, 4)


def test_a_sample_of_an_older_version_is_read():
    again = tensor_from_data(json.loads(json.dumps(tensor_to_data(tensor_from_data(SAMPLED)))))
    assert (again.positions.tolist(), again.shape, again.array.shape) == (
        [[0] * 3, [19] * 3],
        (4, 3, 5),
        (2, 3),
    )
    assert again.index((1, 2)) == (3, 2, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": [0]},
        {"positions": [0, 20]},
        {"positions": [-1, 0]},
        {"positions": ["x", 0]},
        {"positions": 3},
        {"positions": [0, 2**70]},
        {"whole": [4, 2, 5]},
        {"whole": [3]},
        {"whole": [-4, 3, -5]},
        {"whole": None},
        {"whole": "abc"},
    ],
)
def test_a_damaged_sample_raises_value_error(change):
    with pytest.raises(ValueError, match=r"\S"):
        tensor_from_data({**SAMPLED, **change})


@pytest.mark.parametrize("held", [-1, 2, None, "x", [1], 2**70])
def test_places_that_a_fold_has_no_rows_for_raise_value_error(held):
    with pytest.raises(ValueError, match=r"\S"):
        tensor_from_data({**FOLDED, "held": held})
    with pytest.raises(ValueError, match="two rows a place"):
        tensor_from_data({**GOOD, "held": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"numpy": "object"},
        {"numpy": "float128"},
        {"numpy": None},
        {"shape": [2, -3]},
        {"shape": [2, 4]},
        {"shape": [2**40, 2**40]},
        {"shape": None},
        {"shape": ["x"]},
        {"data": "!!!"},
        {"data": ""},
        {"data": 3},
        {"strides": None},
        {"strides": ["a"]},
    ],
)
def test_damaged_data_raises_value_error(change):
    with pytest.raises(ValueError, match=r"\S"):
        tensor_from_data({**GOOD, **change})


@pytest.mark.parametrize("field", sorted(GOOD))
def test_missing_data_raises_value_error(field):
    with pytest.raises(ValueError, match="missing"):
        tensor_from_data({key: value for key, value in GOOD.items() if key != field})


@given(hnp.arrays(np.uint16, 5))
@example(np.array([0x7F81, 0xFF81, 0x7FC0, 0x7F80, 0], np.uint16))  # signalling NaNs: no warning
def test_bfloat16_bits_widen_exactly(bits):
    wide = as_float64(bits, "bfloat16")
    for word, value in zip(bits.tolist(), wide.tolist(), strict=True):
        sign, exponent, fraction = word >> 15, (word >> 7) & 0xFF, word & 0x7F
        if exponent == 0xFF:
            assert not np.isfinite(value)
            continue
        magnitude = (fraction + 128 * (exponent > 0)) * 2.0 ** (max(exponent, 1) - 127 - 7)
        assert value == (-magnitude if sign else magnitude)


@pytest.mark.parametrize(
    ("dtype", "bits"), [("float32", np.uint32(0x7F800001)), ("float16", np.uint16(0x7C01))]
)
def test_a_signalling_nan_widens_without_a_warning(dtype, bits):
    assert np.isnan(as_float64(np.array([bits]).view(dtype), dtype)).all()


def test_values_of_other_dtypes_widen_exactly():
    one = Tensor(dtype="float16", array=np.array([0.1], np.float16))
    assert one.values.dtype == np.float64
    assert one.values[0] == float(np.float16(0.1))

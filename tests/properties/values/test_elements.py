"""Values: Philox as published, pure functions of the choices, exact in their dtype."""

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from properties.case import DTYPES, FAMILIES, Case, Special
from properties.domain import Domain
from properties.generation.strategies import cases, random_case
from properties.values import elements
from properties.values import philox as philox_module
from properties.values.elements import digest, drawn, parameters, round_to, tensors
from properties.values.period import is_large
from properties.values.philox import philox

# Random123's kat_vectors, "philox4x32 7" and "philox4x32 10": counter, key, result.
ZEROS, ONES = "00000000", "ffffffff"
PI = "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0"
KNOWN = [
    (7, " ".join([ZEROS] * 6), "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, " ".join([ONES] * 6), "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, PI, "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, " ".join([ZEROS] * 6), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, " ".join([ONES] * 6), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words_of(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("rounds", "given_words", "result"), KNOWN)
def test_philox_gives_the_published_vectors(monkeypatch, rounds, given_words, result):
    monkeypatch.setattr(philox_module, "_ROUNDS", rounds)
    *counter, low, high = words_of(given_words)
    found = philox(tuple(np.array([word], np.uint64) for word in counter), low | high << 32)
    assert [int(word[0]) for word in found] == words_of(result)


def slow_philox(counter, key, rounds=7):
    """The definition in Salmon et al. (2011), section 3.3, on Python integers."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(rounds):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k0, q & 0xFFFFFFFF, (p >> 32) ^ d ^ k1, p & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return a, b, c, d


WORD = st.integers(0, 2**32 - 1)


@given(st.tuples(WORD, WORD, WORD, WORD), st.integers(0, 2**64 - 1))
def test_philox_agrees_with_a_slow_implementation(counter, seed):
    found = philox(tuple(np.array([word], np.uint64) for word in counter), seed)
    assert tuple(int(word[0]) for word in found) == slow_philox(counter, (seed % 2**32, seed >> 32))


@given(st.floats(width=64))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rounding_agrees_with_numpys_and_is_idempotent(dtype, value):
    with np.errstate(all="ignore"):
        expected = float(np.dtype(dtype).type(value))
    once = round_to(np.array([value]), dtype)
    np.testing.assert_array_equal(once, [expected])
    np.testing.assert_array_equal(round_to(once, dtype), once)


@given(st.floats(width=32))
def test_bfloat16_rounding_is_to_nearest_even(value):
    (found,) = round_to(np.array([value]), "bfloat16")
    if np.isnan(value):
        assert np.isnan(found)
        return
    bits = int(np.float32(value).view(np.uint32)) & 0x7FFFFFFF
    below, rest = bits >> 16, bits & 0xFFFF
    above = below + (rest > 0x8000 or (rest == 0x8000 and below % 2 == 1))
    assert int(np.float32(abs(found)).view(np.uint32)) == above << 16
    assert np.signbit(found) == np.signbit(value)


def test_float64_is_not_rounded():
    value = np.array([1 + 2.0**-52])
    assert round_to(value, "float64") is value


small_cases = cases(Domain()).filter(
    lambda case: sum(map(case.count_of, range(case.world_size))) < 300 and not is_large(case)
)


@settings(max_examples=150)
@given(small_cases)
def test_elements_are_exact_in_their_dtype_and_finite_unless_a_special_says_otherwise(case):
    limit = {"float16": 65504.0, "bfloat16": 3.4e38, "float32": 3.5e38}.get(case.dtype, 1.8e308)
    special = any(one.kind in ("nan", "inf", "-inf") for one in case.specials)
    for rank in range(case.world_size):
        x, g = tensors(case, rank, step=0)
        for array in (x, g):
            np.testing.assert_array_equal(round_to(array, case.dtype), array)
        assert special or np.all(np.abs(x) <= limit)
        assert np.all(np.abs(g) <= 2)
        n, channels, *spatial = case.shape_of(rank)
        assert x.shape == (n, channels, int(np.prod(spatial, dtype=int)))
        assert g.shape == ((1, channels, 1) if case.cotangent_layout == "expanded" else x.shape)
    held = parameters(case)
    for array in (held.weight, held.bias, held.running_mean, held.running_var):
        np.testing.assert_array_equal(round_to(array, case.param_dtype), array)
        assert array.shape == (case.channels,)
    assert np.all(held.running_var > 0)


@settings(max_examples=100)
@given(small_cases, st.data())
def test_shrinking_the_sizes_keeps_the_surviving_elements(case, data):
    steps = tuple(msgspec.structs.replace(step, batches=(), spatial=()) for step in case.steps)
    case = msgspec.structs.replace(case, specials=(), last_values="", steps=steps)
    rank = data.draw(st.integers(0, case.world_size - 1))
    n = data.draw(st.integers(0, case.batches[rank]))
    channels = data.draw(st.integers(1, case.channels))
    batches = (*case.batches[:rank], n, *case.batches[rank + 1 :])
    smaller = msgspec.structs.replace(case, batches=batches, channels=channels)
    for step in (0, 1):
        x, g = tensors(case, rank, step=step)
        y, h = tensors(smaller, rank, step=step)
        np.testing.assert_array_equal(y, x[:n, :channels])
        np.testing.assert_array_equal(h, g[: len(h), :channels])
    np.testing.assert_array_equal(parameters(smaller).weight, parameters(case).weight[:channels])


def test_fewer_ranks_or_positions_keep_the_surviving_elements():
    wide = Case(batches=(3, 2), spatial=((7,),), channels=2, seed=5)
    for narrow in (Case(batches=(3,), spatial=((4,),), channels=2, seed=5),):
        np.testing.assert_array_equal(tensors(narrow, 0, step=0)[0], tensors(wide, 0, step=0)[0][:, :, :4])


def test_neither_layout_nor_options_change_a_value():
    one = Case(batches=(2, 2), spatial=((2, 2),), channels=3)
    other = msgspec.structs.replace(
        one, input_layout="permuted", cotangent_layout="channels_last", momentum=None, affine="none"
    )
    for rank in (0, 1):
        for a, b in zip(tensors(one, rank, step=0), tensors(other, rank, step=0), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_tensors_are_drawn_in_tiles_and_chunks_without_a_seam(monkeypatch, dtype):
    case = Case(batches=(21,), channels=3, spatial=((5, 7),), values="mixed", dtype=dtype)
    monkeypatch.setattr(philox_module, "TILE_SAMPLES", 8)
    monkeypatch.setattr(philox_module, "TILE_POSITIONS", 16)
    whole = drawn(case, (0,))[0, 0]
    for chunk in (1 << 14, 100, 1):
        monkeypatch.setattr(philox_module, "_CHUNK", chunk)
        for last in (False, True):
            monkeypatch.setattr(elements, "_SMALL", 1)
            for a, b in zip(whole, drawn(case, (0,), channels_last=last)[0, 0], strict=True):
                np.testing.assert_array_equal(a, b)


def test_tiles_are_drawn_independently():
    """Each has the variate's moments (variance 2/3), and pairs of tiles are not correlated."""
    case = Case(batches=(3 * 4096,), channels=2, spatial=((3,),), values="constant")
    wide = Case(batches=(3,), channels=2, spatial=((5 * 256,),), values="constant")
    samples = tensors(case, 0, step=0)[1].reshape(3, -1)
    positions = tensors(wide, 0, step=0)[1].reshape(6, 5, 256).transpose(1, 0, 2).reshape(5, -1)
    for tiles in (samples, positions):
        error = 5 / math.sqrt(tiles.shape[1])
        assert np.all(np.abs(tiles.mean(1)) < error)
        assert np.all(np.abs(tiles.var(1) - 2 / 3) < error)
        assert np.all(np.abs(np.corrcoef(tiles) - np.eye(len(tiles))) < error)


@pytest.mark.parametrize("shape", [(70, 3, 90), (1, 2, 9000), (9000, 2, 1), (4, 5, 1000)])
def test_the_digest_of_a_large_tensor_tells_one_bit_and_not_the_layout(shape):
    array = np.random.Generator(np.random.Philox(1)).standard_normal(shape)
    other = array.transpose(0, 2, 1).copy().transpose(0, 2, 1)
    assert digest(array) == digest(other)
    other[-1, 1, -1] = np.nextafter(other[-1, 1, -1], 9)
    assert digest(array) != digest(other)
    assert digest(array) != digest(
        array.reshape(shape[0], -1, 1) if shape[2] > 1 else array.reshape(1, 2, -1)
    )


def test_ranks_steps_and_seeds_draw_different_elements_and_parameters_do_not_depend_on_rank_or_step():
    case = Case(batches=(4, 4), channels=2)
    drawn = [tensors(case, rank, step=step)[0] for rank in (0, 1) for step in (0, 1)]
    drawn.append(tensors(msgspec.structs.replace(case, seed=1), 0, step=0)[0])
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert not np.any(one == other)


def test_exponents_scale_exactly():
    case = Case(batches=(3,), channels=5, dtype="float16", param_dtype="float16", random_parameters=True)
    scaled = msgspec.structs.replace(case, cotangent_exponent=3, affine_exponent=2)
    (x, g), (y, h) = tensors(case, 0, step=0), tensors(scaled, 0, step=0)
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(h, 8 * g)
    a, b = parameters(case), parameters(scaled)
    np.testing.assert_array_equal(b.weight, 4 * a.weight)
    np.testing.assert_array_equal(b.bias, 4 * a.bias)
    np.testing.assert_array_equal(a.running_var, b.running_var)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_what_they_say(dtype, family):
    param_dtype = "float64" if dtype == "float64" else "float32"
    case = Case(batches=(64,), channels=64, dtype=dtype, param_dtype=param_dtype, values=family, eps=1e-3)
    x = tensors(case, 0, step=0)[0][:, :, 0]
    if family == "near_overflow":
        largest = {"float16": 65504.0, "float64": 1.7e308}.get(dtype, 3.3e38)
        assert np.abs(x).max() > largest / 4
        return
    mean, std = x.mean(0), x.std(0)
    match family:
        case "ordinary":
            assert np.all((std > 0.2) & (std < 2))
        case "large_offset":
            ratio = np.abs(mean) / std
            assert ratio.min() > 8
            assert ratio.max() > {"float64": 2000, "float32": 2000, "float16": 100, "bfloat16": 15}[dtype]
            assert np.all([len(np.unique(column)) > 16 for column in x.T])
        case "tiny_spread":
            assert np.all(std**2 < 4e-3)
            assert np.any(std**2 < 1e-6)
            assert np.all([len(np.unique(column)) > 8 for column in x.T])
        case "constant":
            assert np.all(std == 0)
            assert len(np.unique(mean)) > 32
        case "mixed":
            assert np.all(np.abs(x).max(0) > 8 * np.median(np.abs(x - mean), 0))
        case "subnormal":
            smallest = {"float16": 2.0**-14, "float64": 2.0**-400}.get(dtype, 2.0**-126)
            assert np.all(np.abs(x) < smallest)
            assert np.all(std > 0)


def test_a_rank_offset_moves_each_ranks_mean_by_more_than_the_spread():
    case = Case(batches=(50, 50, 50), channels=32, rank_offset=16)
    means = np.array([tensors(case, rank, step=0)[0].mean((0, 2)) for rank in range(3)])
    assert np.median(means.std(0)) > 5


def test_random_parameters_are_negative_and_zero_too_and_identity_otherwise():
    held = parameters(Case(channels=130, random_parameters=True))
    assert np.any(held.weight < 0)
    assert np.any(held.weight == 0)
    assert np.any(held.weight > 0)
    assert len(np.unique(held.bias)) > 100
    plain = parameters(Case(channels=2))
    assert (plain.weight.tolist(), plain.bias.tolist()) == ([1, 1], [0, 0])
    assert (plain.running_mean.tolist(), plain.running_var.tolist()) == ([0, 0], [1, 1])


def test_specials_replace_one_element_of_the_first_step_reduced_into_the_tensor():
    special = Special("inf", rank=3, sample=5, channel=7, position=9)
    case = Case(batches=(2, 3), spatial=((4,),), channels=2, specials=(special,))
    plain = msgspec.structs.replace(case, specials=())
    changed = tensors(case, 1, step=0)[0] != tensors(plain, 1, step=0)[0]
    assert np.argwhere(changed).tolist() == [[5 % 3, 7 % 2, 9 % 4]]
    assert tensors(case, 1, step=0)[0][2, 1, 1] == np.inf
    np.testing.assert_array_equal(tensors(case, 0, step=0)[0], tensors(plain, 0, step=0)[0])
    np.testing.assert_array_equal(tensors(case, 1, step=1)[0], tensors(plain, 1, step=1)[0])


def test_a_special_on_an_empty_rank_does_nothing():
    case = Case(batches=(0, 3), specials=(Special("nan"),))
    assert tensors(case, 0, step=0)[0].size == 0
    assert np.all(np.isfinite(tensors(case, 1, step=0)[0]))


def test_a_digest_tells_values_apart_by_a_single_bit():
    one = np.array([1.0, 2.0])
    assert digest(one) == digest(one.copy())
    assert digest(one) != digest(np.nextafter(one, 3))
    assert len(digest(one, one)) == 16


def test_values_of_today_are_values_for_ever():
    """A stranger's case replays bit for bit: only a new version of the case format may change these."""
    plain = Case(batches=(3, 2), spatial=((2, 2),), channels=3, seed=1)
    assert digest(*tensors(plain, 1, step=1)) == "9a07a7f210a40da4"
    held = parameters(msgspec.structs.replace(plain, random_parameters=True))
    assert digest(held.weight, held.bias, held.running_mean, held.running_var) == "02dbfc9f1d961bc8"
    fields = {"batches": (3, 2), "channels": 5, "dtype": "bfloat16", "rank_offset": 2}
    drawn = [tensors(Case(values=family, **fields), 1, step=0)[0] for family in FAMILIES]
    assert digest(*drawn) == "3a510bd547f3db86"


def test_an_odd_last_channel_leaves_the_others_as_they_are():
    plain = Case(batches=(4, 3), channels=12, seed=3)
    odd = msgspec.structs.replace(plain, last_values="constant")
    for rank in (0, 1):
        x, g = tensors(plain, rank, step=0)
        y, h = tensors(odd, rank, step=0)
        np.testing.assert_array_equal(y[:, :-1], x[:, :-1])
        np.testing.assert_array_equal(h, g)
        assert len(np.unique(y[:, -1])) == 1


@pytest.mark.parametrize("seed", range(40))
def test_all_blocks_of_a_case_at_once_are_those_drawn_one_by_one(seed):
    case = random_case(random.Random(seed), Domain())
    together = drawn(case, range(case.world_size))
    assert list(together) == [(rank, k) for rank in range(case.world_size) for k in range(len(case.steps))]
    for (rank, k), arrays in together.items():
        for array, alone in zip(arrays, tensors(case, rank, step=k), strict=True):
            np.testing.assert_array_equal(array, alone)

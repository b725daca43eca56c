"""Repetition: of a large block one period is drawn and expected, and that is what the whole block holds."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from properties.case import Case, Special, Step
from properties.domain import Contract
from properties.expectation.expect import expect
from properties.judge.catalogue import judge
from properties.observation import Observation, RankObservation, Tensor
from properties.values import elements
from properties.values import period as period_module
from properties.values.period import fold, period, repeated, times
from properties.verdict import Outcome

WHOLE = 10**9
PERIODS = period_module._PERIODS
CASES = {
    "uneven": Case(
        batches=(9, 0, 14, 1),
        channels=3,
        spatial=((4, 5),),
        random_parameters=True,
        steps=(Step(), Step(mode="eval")),
    ),
    "float64": Case(
        batches=(90, 2),
        channels=5,
        dtype="float64",
        param_dtype="float64",
        random_parameters=True,
        rank_offset=4,
        values="large_offset",
    ),
    "not finite": Case(
        batches=(12, 33),
        channels=4,
        spatial=((9,),),
        specials=(Special(kind="nan", rank=1, sample=3, channel=2),),
        steps=(Step(), Step(mode="eval")),
    ),
    "expanded": Case(
        batches=(30, 40), channels=2, spatial=((60,),), cotangent_layout="expanded", dtype="bfloat16"
    ),
    "subnormal": Case(batches=(30, 40), channels=2, spatial=((60,),), values="subnormal"),
    "near overflow": Case(
        batches=(30, 40), channels=8, spatial=((60,),), values="near_overflow", rank_offset=1
    ),
    "half": Case(
        batches=(300, 40), channels=8, values="mixed", rank_offset=1, dtype="float16", param_dtype="float16"
    ),
    "groups": Case(batches=(110, 70, 99, 1), channels=4, groups=((0, 2), (1, 3)), steps=(Step(mode="eval"),)),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Blocks of some hundred elements count as large."""
    monkeypatch.setattr(elements, "_SMALL", 0)
    monkeypatch.setattr(period_module, "REPEATS_ABOVE", 250)
    monkeypatch.setattr(period_module, "_PERIODS", ((2, 97), (4, 47), (4096, 11)))


DRAWN = elements.drawn


def whole_of(case, grade="A"):
    """Return what is expected of every element, computed from every element."""

    def drawn(case, ranks, **_):
        shapes = {
            rank: (case.batches[rank], case.channels, math.prod(case.spatial_of(rank))) for rank in ranks
        }
        return {
            block: tuple(repeated(array, shapes[block[0]]) for array in pair)
            for block, pair in DRAWN(case, ranks).items()
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "drawn", drawn)
        return expect(case, Contract(), grade)


@example(11, 1, 1, 11)  # a period as long as the whole: the same elements in another shape
@example(11, 3, 1, 11)
@example(1, 2, 13, 13)
@given(st.integers(1, 70), st.integers(1, 4), st.integers(1, 70), st.sampled_from([11, 13, 121]))
def test_each_position_holds_what_its_number_modulo_the_period_holds(n, c, positions, held):
    if n * positions < held:
        return
    block = np.arange(c * held, dtype=np.float64).reshape(1, c, held)
    found = repeated(block, (n, c, positions))
    numbers = np.arange(n * positions).reshape(n, 1, positions) % held
    np.testing.assert_array_equal(found, numbers + np.arange(c)[None, :, None] * held)
    np.testing.assert_array_equal(times(n * positions, held), np.bincount(numbers.ravel(), minlength=held))
    rng = np.random.Generator(np.random.Philox(n))
    noise = rng.standard_normal(found.shape)
    places = fold(noise, held)
    rows = noise.transpose(0, 2, 1).reshape(-1, c)
    for end, of in ((places[:held], np.min), (places[held:], np.max)):
        for place in range(0, held, 7):
            at = numbers[:, 0, :] == place
            np.testing.assert_array_equal(
                rows[end[place], np.arange(c)], of(noise.transpose(0, 2, 1)[at], axis=0)
            )


def test_a_nan_among_the_copies_is_both_ends_and_what_is_finite_beside_it_shows():
    block = np.zeros((60, 2, 3), np.float32)
    block[50, 1, 2] = np.nan
    at, channel = (50 * 3 + 2) % 11, 1
    places = fold(block, 11)
    rows = block.transpose(0, 2, 1).reshape(-1, 2)
    values = rows[places, np.arange(2)].reshape(3, 11, 2)
    assert [tuple(map(int, place)) for place in np.argwhere(np.isnan(values))] == [
        (0, at, channel),
        (1, at, channel),
    ]
    assert values[2, at, channel] == 0.0


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(60, 2, 3), (1, 5, 150), (300, 3), (3, 2, 4, 5, 2), (2, 4, 9, 9)])
@pytest.mark.parametrize("special", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("repeats", [True, False, None])
def test_a_rank_folds_as_the_judge_does(dtype, shape, special, repeats):
    """With special values and without, of a block that repeats but for its last element, and of any other."""
    torch = pytest.importorskip("torch")
    from verify.ranks.worker.capture import capture

    held = 11
    values = torch.from_numpy(np.random.Generator(np.random.Philox(1)).standard_normal(shape))
    values.view(-1)[:: values.numel() // 3] = special
    if repeats is not False:
        n, c, size = shape[0], shape[1], math.prod(shape[2:])
        period = values.reshape(n, c, size).transpose(1, 2).reshape(n * size, c)[:held].T
        values = torch.from_numpy(repeated(period[None].numpy().copy(), (n, c, size))).reshape(shape)
    if repeats is None:
        values.view(-1)[-1] = 0.25
    tensor = values.to(getattr(torch, dtype))
    if len(shape) == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    found = capture(tensor, beside=tensor, held=held)
    n, c, size = shape[0], shape[1], math.prod(shape[2:])
    whole = capture(tensor, beside=tensor)
    plain = Tensor(dtype=dtype, array=whole.array)
    places = fold(plain.values.reshape(n, c, size), held)
    sample, position = np.divmod(places, size)
    expected = plain.values.reshape(n, c, size)[sample, np.arange(c), position]
    observed = Tensor(
        dtype=dtype, array=found.array, positions=found.positions, logical_shape=shape, held=held
    )
    assert (found.logical_shape, found.held, found.positions.shape) == (shape, held, expected.shape)
    np.testing.assert_array_equal(observed.values, expected)
    for row in range(0, len(places), 5):
        assert plain.values[observed.index((row, 1))] == observed.values[row, 1] or np.isnan(
            observed.values[row, 1]
        )


def test_a_tensor_of_another_shape_or_dtype_is_given_back_whole_and_bits_only_if_asked_for():
    torch = pytest.importorskip("torch")
    from verify.ranks.worker.capture import capture

    x = torch.zeros(40, 3)
    assert capture(x[:20], beside=x, held=11).positions is None
    assert capture(x.long(), beside=x, held=11).positions is None
    assert capture(x, beside=x, held=11).bits == ""
    one, other = capture(x, beside=x, held=11, with_bits=True), x.clone()
    other[39, 2] = -0.0
    again = capture(other, beside=x, held=11, with_bits=True)
    assert one.array.tobytes() == again.array.tobytes()
    assert one.bits != again.bits


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_digest_takes_any_nan_for_any_other(dtype):
    torch = pytest.importorskip("torch")
    from verify.ranks.worker.capture import capture

    one, other = (torch.zeros(40, 3, dtype=getattr(torch, dtype)) for _ in range(2))
    wide = {8: torch.int64, 4: torch.int32, 2: torch.int16}[one.element_size()]
    one[5, 1] = other[5, 1] = math.nan
    other.view(wide)[5, 1] += 1
    assert bool(other[5, 1].isnan())
    assert not torch.equal(one.view(wide), other.view(wide))
    first, second = (capture(each, beside=each, held=11, with_bits=True) for each in (one, other))
    assert first.bits == second.bits


@given(st.integers(1, 60_000), st.integers(1, 4096))
def test_a_period_fits_nothing_that_kernels_divide_by(count, channels):
    case = Case(batches=(count, 1), channels=channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(period_module, "REPEATS_ABOVE", 1 << 17)
        patch.setattr(period_module, "_PERIODS", PERIODS)
        found, lone = period(case, 0), period(case, 1)
    assert lone == 1
    if max(count, 1) * channels <= 1 << 17:
        assert found == count
    else:
        assert found >= 13
        assert all(found % factor for factor in range(2, found))
        assert found * channels <= 1 << 16
        assert 2 * found <= count


@pytest.mark.parametrize("name", CASES)
def test_the_first_period_is_what_a_block_without_repetition_holds(name, monkeypatch):
    case = CASES[name]
    finite = msgspec.structs.replace(case, specials=())
    drawn = elements.drawn(finite, range(case.world_size))
    assert any(x.shape[0] * x.shape[2] < case.count_of(rank) for (rank, _), (x, _) in drawn.items())
    monkeypatch.setattr(period_module, "REPEATS_ABOVE", WHOLE)
    for (rank, step), pair in elements.drawn(finite, range(case.world_size)).items():
        for once, array in zip(drawn[rank, step], pair, strict=True):
            held = once.shape[0] * once.shape[2]
            flat = array.transpose(0, 2, 1).reshape(-1, case.channels)[:held]
            np.testing.assert_array_equal(once.transpose(0, 2, 1).reshape(-1, case.channels), flat)


@pytest.mark.parametrize("grade", ["A", pytest.param("C", marks=pytest.mark.costly)])
@pytest.mark.parametrize(
    "name", [name if name == "uneven" else pytest.param(name, marks=pytest.mark.costly) for name in CASES]
)
def test_what_is_expected_of_one_period_is_what_is_expected_of_the_whole(name, grade):
    case = CASES[name]
    once, whole = expect(case, Contract(), grade), whole_of(case, grade)
    assert once.tensors.keys() == whole.tensors.keys()
    assert (once.tracked, once.refusals) == (whole.tracked, whole.refusals)
    repeats = 0
    for name_, by_rank in whole.tensors.items():
        for rank, wanted in by_rank.items():
            one = once.tensors[name_][rank]
            repeats += one.repeats
            assert not wanted.repeats
            assert one.shape == wanted.shape
            full = one.complete()
            np.testing.assert_array_equal(np.isnan(full.value), np.isnan(wanted.value))
            np.testing.assert_array_equal(full.overflows, wanted.overflows)
            np.testing.assert_array_equal(np.isinf(full.bound), np.isinf(wanted.bound))
            decided = np.isfinite(wanted.value) & np.isfinite(wanted.bound)
            # Of subnormal numbers the allowances for flushing count the padding, too. Grade C takes the
            # larger of two forms shard by shard: cut otherwise, their sum is another of two valid bounds.
            near = 0.02 if case.values == "subnormal" else 0.05 if grade == "C" else 1e-3
            close = {"rtol": near, "atol": 0.0}
            np.testing.assert_allclose(full.bound[decided], wanted.bound[decided], **close)
            gap = np.abs(full.value - wanted.value)[decided]
            assert np.all(gap <= 1e-3 * wanted.bound[decided])
    assert repeats


def observed(case, expected):
    """Return what a rank gives back that computes exactly; its arrays may be written to."""
    ranks = []
    for rank in range(case.world_size):
        tensors = {}
        for name, by_rank in expected.tensors.items():
            array = np.array(by_rank[rank].complete().value)
            tensors[name] = Tensor(dtype="float64", array=array, requires_grad=True)
        ranks.append(RankObservation(rank=rank, ending="returned", tensors=tensors))
    return ranks


@pytest.mark.parametrize("name", ["uneven", pytest.param("float64", marks=pytest.mark.costly), "groups"])
def test_one_wrong_element_of_a_repeating_tensor_is_told_by_its_index(name):
    case = CASES[name]
    expected = expect(case, Contract(), "A")
    right = judge(case, Observation(ranks=tuple(observed(case, expected))), expected, Contract())
    (forward,) = [verdict for verdict in right if verdict.property == "forward"]
    outputs = [
        one
        for by_rank in expected.tensors.items()
        if by_rank[0].startswith("output")
        for one in by_rank[1].values()
    ]
    assert forward.outcome is Outcome.HOLDS
    assert forward.elements == sum(math.prod(one.shape) for one in outputs)
    for change in (1.0, math.nan, math.inf):
        ranks = observed(case, expected)
        array = ranks[0].tensors["output.0"].array
        index = tuple(size - 1 for size in array.shape)
        array[index] += change
        verdicts = judge(case, Observation(ranks=tuple(ranks)), expected, Contract(), only=("forward",))
        assert verdicts[0].outcome is Outcome.VIOLATED
        (found,) = verdicts[0].discrepancies
        assert (found.quantity, found.rank, found.index, found.mismatched) == ("output.0", 0, index, 1)
        assert found.at_least is True


def test_a_finite_element_of_a_poisoned_channel_is_told_by_its_index():
    case = CASES["not finite"]
    expected = expect(case, Contract(), "A")
    ranks = observed(case, expected)
    ranks[1].tensors["output.0"].array[32, 2, 8] = 1.0
    verdicts = judge(case, Observation(ranks=tuple(ranks)), expected, Contract(), only=("nonfinite",))
    (found,) = verdicts[0].discrepancies
    assert (found.quantity, found.rank, found.index, found.mismatched) == ("output.0", 1, (32, 2, 8), 1)


def test_blind_and_undecided_elements_are_counted_as_often_as_they_occur():
    for name in ("near overflow", "subnormal", "float64"):
        case = CASES[name]
        once, whole = expect(case, Contract(), "A"), whole_of(case)
        counts = []
        for expected in (once, whole):
            ranks = tuple(observed(case, expected))
            counts.append(
                [
                    (v.property, v.outcome, v.elements, v.undecided, v.blind)
                    for v in judge(case, Observation(ranks=ranks), expected, Contract())
                ]
            )
        assert counts[0] == counts[1]

"""The program: what its arguments may change without a compilation, and its padding."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from reference.host import configure_cache, precise
from reference.padding import layout, pack
from reference.program import compiled_step
from reference.rounding import FACTS, arithmetic, depth
from reference.signature import StepInput, StepOutput, StepScalars


def step_input(counts, *, channels=2, dtype="float32", grade="A", seed=1):
    rng = np.random.Generator(np.random.Philox(seed))
    where = layout(counts, channels)
    rows = np.zeros((6, where.bucket.channels))
    rows[0], rows[4] = 1.0, 1.0
    n = sum(counts)
    u = FACTS[dtype].u
    depths = np.array([depth(c, 1, grade) * u for c in counts] + [0.0] * where.bucket.ranks)[where.owner][
        :, None
    ]
    scalars = StepScalars(
        *arithmetic(dtype, n=n, ranks=len(counts), grade=grade),
        n=n,
        n_error=0,
        eps=1e-5,
        eps_error=1e-5 * u,
        training=1.0,
        one_pass=float(grade == "C"),
        store_u=0,
        store_underflow=0,
        parameter_u=0,
        parameter_underflow=0,
    )
    arrays = [rng.standard_normal((c, channels, 1)) for c in counts]
    given = StepInput(
        pack(where, arrays),
        pack(where, [a[::-1] for a in arrays]),
        where.mask,
        where.owner,
        rows,
        depths,
        np.asarray(scalars),
    )
    return where, given


def run(where, given):
    with precise():
        return StepOutput(*map(np.asarray, compiled_step(where.bucket)(given)))


def test_one_bucket_serves_every_dtype_grade_and_split():
    program = None
    for counts, dtype, grade in (
        ([3, 4], "float32", "A"),
        ([1, 0, 7], "float64", "B"),
        ([8], "bfloat16", "C"),
    ):
        where, given = step_input(counts, dtype=dtype, grade=grade)
        run(where, given)
        program = program or compiled_step(where.bucket)
        assert compiled_step(where.bucket) is program


def test_what_is_read_in_a_narrower_dtype_carries_the_rounding_of_the_reading():
    where, given = step_input([5, 3])
    scalars = np.asarray(given.scalars).copy()
    scalars[StepScalars._fields.index("training")] = 0.0
    rows = np.zeros_like(given.parameters)
    rows[0], rows[2], rows[4] = 1.0, 1000.0, 1.0
    x = np.where(where.mask[..., None], 1000.0 + 1e-2 * given.x, 0.0)
    given = given._replace(x=x, scalars=scalars, parameters=rows)
    narrowed = where._replace(bucket=where.bucket._replace(narrowed=True))
    exact, wide = run(where, given), run(narrowed, given)
    np.testing.assert_array_equal(exact.y, wide.y)
    more = (wide.y_bound - exact.y_bound)[where.mask][:, :2] / (FACTS["float32"].u * 1000.0)
    assert (more > 1.9).all()  # input and mean are read
    assert (more < 2.1).all()


def test_padding_changes_no_value():
    """The same data in a larger bucket gives the same values."""
    _, small = step_input([5, 3])
    where = layout([5, 3], 2)
    large = where.bucket._replace(shards=16)
    padding = ((0, 16 - where.bucket.shards), (0, 0))
    grown = small._replace(
        x=np.pad(small.x, (*padding, (0, 0))),
        g=np.pad(small.g, (*padding, (0, 0))),
        mask=np.pad(small.mask, padding),
        owner=np.concatenate([small.owner, np.full(12, where.bucket.ranks, np.int32)]),
        depths=np.pad(small.depths, padding),
    )
    one, two = run(where, small), run(where._replace(bucket=large), grown)
    shards = where.bucket.shards
    np.testing.assert_allclose(two.y[:shards], one.y, rtol=1e-15)
    np.testing.assert_allclose(two.grad_weight, one.grad_weight, rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(two.y_bound[:shards][where.mask], one.y_bound[where.mask], rtol=1e-12)


def test_bounds_grow_from_grade_a_to_c():
    where, a = step_input([600, 500], grade="A")
    bounds = [run(where, step_input([600, 500], grade=grade)[1]) for grade in "ABC"]
    real = where.mask
    for name in ("y_bound", "grad_input_bound"):
        first, second, third = (getattr(result, name)[real][:, :2] for result in bounds)
        assert (first <= second).all()
        assert (second <= third).all()
        assert (first < third).any()
    assert a.scalars[3] < step_input([600, 500], grade="B")[1].scalars[3]


def test_precise_leaves_the_caller_s_jax_as_it_was():
    with precise():
        assert jax.numpy.ones(1).dtype == np.float64
    assert jax.numpy.ones(1).dtype == np.float32


def test_cache_folder_of_the_user_s_choice_is_kept():
    folder = configure_cache()
    assert str(folder) == jax.config.jax_compilation_cache_dir or not jax.config.jax_compilation_cache_dir
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


@pytest.mark.parametrize("counts", [[2, 2], [1, 0, 5]])
def test_masked_positions_have_zero_values(counts):
    where, given = step_input(counts)
    result = run(where, given)
    assert not result.y[~where.mask].any()
    assert not result.grad_input[~where.mask].any()


@pytest.mark.parametrize(("size", "decided"), [(4e37, False), (4e36, True)])
def test_a_sum_of_shards_that_may_overflow_on_its_way_is_undecided(size, decided):
    where, given = step_input([24], channels=1)
    assert where.bucket.length == 8
    x, g = np.zeros_like(given.x), np.ones_like(given.g)
    x[:3, :, 0] = size * np.array([1.0, 1.0, -1.0])[:, None]
    scalars = np.array(given.scalars)
    scalars[StepScalars._fields.index("training")] = 0.0
    result = run(where, given._replace(x=x, g=g, scalars=scalars))
    assert result.grad_weight[0, 0] == pytest.approx(8 * size, rel=1e-4)
    assert np.isfinite(result.grad_weight_bound[0, 0]) == decided

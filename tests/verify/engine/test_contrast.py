"""With which changes of its defaults a smallest case holds."""

from properties.case import Case, Step
from verify.engine.contrast import contrasts


def test_each_default_is_moved_once_and_what_holds_is_told():
    ran = []

    def holds(case):
        ran.append(case)
        return case.dtype == "float64" or len(set(case.batches)) == 1

    assert contrasts(Case(batches=(1, 3)), holds) == ("with equal batches", "in float64")
    assert len(ran) == len(set(ran)) > 8
    assert Case(batches=(1, 3)) not in ran


def test_what_holds_by_chance_is_not_told():
    """Of other values the change holds no better."""
    assert contrasts(Case(batches=(2,), seed=7), lambda moved: moved.seed == 7) == ()


def test_what_a_case_has_already_is_not_moved():
    case = Case(
        batches=(2,), eps=1.0, momentum=None, random_parameters=True, dtype="float64", param_dtype="float64",
        steps=(Step(mode="eval"),), spatial=((2,),),
    )  # fmt: skip
    assert contrasts(case, lambda moved: True) == (
        "with 5 more samples on each rank",
        "with 3 more channels",
        "in float32",
    )


def test_a_change_that_is_no_case_is_left_out():
    case = Case(batches=(2**20, 2**20), spatial=((64,),))
    assert "with 3 more channels" not in contrasts(case, lambda moved: True)


def test_the_greatest_seed_has_others_beside_it():
    assert "with 3 more channels" in contrasts(Case(batches=(2,), seed=2**64 - 1), lambda moved: True)

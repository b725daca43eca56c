"""dtype_and_layout and purity."""

import msgspec
import numpy as np
import pytest

from properties.case import Step
from properties.domain import Contract


@pytest.mark.parametrize("name", ["output.0", "grad_input.0", "grad_weight.0", "running_var.0"])
def test_another_dtype_or_shape_is_a_violation(scene, tensor, name):
    one = scene(batches=(2, 2), channels=2)
    held = one.ranks[1].tensors[name]
    one.put(1, name, msgspec.structs.replace(held, dtype="float64", array=held.array.astype(np.float64)))
    found = one.verdicts()["dtype_and_layout"].discrepancies
    assert [(d.quantity, d.rank, d.observed, d.expected) for d in found] == [
        (f"dtype of {name}", 1, "float64", "float32")
    ]
    one.put(1, name, msgspec.structs.replace(held, array=held.array[None]))
    found = one.verdicts()["dtype_and_layout"].discrepancies
    assert [d.quantity for d in found] == [f"shape of {name}"]


@pytest.mark.parametrize(
    ("fields", "differentiable"),
    [
        ({}, True),
        ({"input_grad": (False, False)}, True),
        ({"input_grad": (False, False), "affine": "none"}, False),
        ({"input_grad": (False, False), "frozen": ("weight", "bias")}, False),
        ({"input_grad": (False, False), "frozen": ("weight",)}, True),
        ({"input_grad": (False, False), "affine": "weight", "frozen": ("weight",)}, False),
    ],
)
def test_an_output_requires_a_gradient_exactly_if_something_upstream_does(scene, fields, differentiable):
    one = scene(batches=(2, 2), **fields)
    for says in (True, False):
        for rank in (0, 1):
            held = one.ranks[rank].tensors["output.0"]
            one.put(rank, "output.0", msgspec.structs.replace(held, requires_grad=says))
        assert ("dtype_and_layout" in one.violated()) is (says is not differentiable)


def test_an_empty_output_need_not_require_a_gradient(scene):
    one = scene(batches=(0, 2))
    held = one.ranks[0].tensors["output.0"]
    one.put(0, "output.0", msgspec.structs.replace(held, requires_grad=False, aliases_input=True))
    assert one.violated() == set()


def test_an_output_may_share_the_inputs_memory_only_in_place(scene):
    one = scene(batches=(2,))
    held = one.ranks[0].tensors["output.0"]
    one.put(0, "output.0", msgspec.structs.replace(held, aliases_input=True))
    assert one.violated() == {"dtype_and_layout"}
    one.contract = Contract(inplace=True)
    assert one.violated() == set()


@pytest.mark.parametrize(("strides", "wrong"), [((1, 2), False), ((0, 1), True), ((3, 1), False)])
def test_no_two_elements_of_an_output_share_memory_but_any_order_will_do_where_any_may(scene, strides, wrong):
    one = scene(batches=(2,), channels=2)
    one.contract = Contract(memory_format="any")
    held = one.ranks[0].tensors["output.0"]
    one.put(0, "output.0", msgspec.structs.replace(held, strides=strides))
    assert (one.violated() == {"dtype_and_layout"}) is wrong


@pytest.mark.parametrize(
    ("layout", "strides", "right"),
    [
        ("contiguous", (24, 6, 3, 1), True),
        ("contiguous", (24, 1, 12, 4), False),
        ("contiguous", (48, 6, 3, 1), False),
        ("channels_last", (24, 1, 12, 4), True),
        ("channels_last", (24, 6, 3, 1), False),
        ("permuted", (24, 6, 3, 1), True),
        ("permuted", (1, 2, 8, 16), True),
        ("contiguous", (), True),  # of a record that does not say
    ],
)
def test_the_output_has_the_memory_format_of_the_input(scene, layout, strides, right):
    one = scene(batches=(2,), channels=4, spatial=((2, 3),), input_layout=layout)
    held = one.ranks[0].tensors["output.0"]
    one.put(0, "output.0", msgspec.structs.replace(held, strides=strides))
    assert one.violated() == (set() if right else {"dtype_and_layout"})
    one.contract = Contract(memory_format="any")
    assert one.violated() == set()


def test_sizes_of_one_tell_no_memory_format(scene):
    one = scene(batches=(2,), channels=4, spatial=((1, 1),), input_layout="channels_last")
    held = one.ranks[0].tensors["output.0"]
    one.put(0, "output.0", msgspec.structs.replace(held, strides=(4, 1, 1, 1)))
    assert one.violated() == set()


@pytest.mark.parametrize("grad_mode", ["no_grad", "inference"])
def test_an_output_without_gradients_requires_none(scene, grad_mode):
    one = scene(batches=(2, 2), steps=(Step(backward="none", grad_mode=grad_mode),))
    for rank in (0, 1):
        held = one.ranks[rank].tensors["output.0"]
        one.put(rank, "output.0", msgspec.structs.replace(held, requires_grad=rank == 1))
    (found,) = one.verdicts()["dtype_and_layout"].discrepancies
    assert found.mismatched_ranks == (1,)
    assert one.violated() == {"dtype_and_layout"}


def test_other_tensors_in_the_place_of_buffers_are_a_violation_unless_the_contract_admits_them(scene):
    one = scene(batches=(2, 2))
    one.change(1, replaced=("running_mean.0",))
    assert one.violated() == {"identity"}
    one.contract = Contract(identity=False)
    assert one.violated() == set()


def test_a_stride_of_zero_along_a_size_of_one_is_harmless(scene):
    one = scene(batches=(1,), channels=2)
    held = one.ranks[0].tensors["output.0"]
    one.put(0, "output.0", msgspec.structs.replace(held, strides=(0, 1)))
    assert one.violated() == set()


@pytest.mark.parametrize("name", ["input.0", "cotangent.1", "weight.0", "bias.0"])
def test_whatever_was_modified_is_a_violation_of_purity(scene, name):
    one = scene(batches=(2, 2))
    one.change(1, modified=(name,))
    verdict = one.verdicts()["purity"]
    assert one.violated() == {"purity"}
    assert (verdict.discrepancies[0].quantity, verdict.discrepancies[0].mismatched_ranks) == (name, (1,))
    one.contract = Contract(inplace=True)
    assert ("purity" in one.violated()) is (not name.startswith("input"))

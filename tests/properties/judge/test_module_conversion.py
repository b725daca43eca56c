"""The property `conversion`, on facts as a rank tells them."""

from __future__ import annotations

import pytest

LAYER = {
    "kind": "plain",
    "module": "plain",
    "eps": "1e-05",
    "momentum": "None",
    "training": "False",
    "qconfig": "eight bits",
    "weight": "weight of plain",
    "weight.requires_grad": "False",
    "running_mean": "torch.float32 [1.0, 2.0]",
    "num_batches_tracked": "torch.int64 [7]",
    "forward_hooks": "forward_hook 0 of plain",
}
GIVEN = "the given one"


def told(place="plain", kind="plain", **changes):
    """Return the facts of a right conversion of one layer, with those in `changes` otherwise afterwards."""
    before = {f"before {aspect} of {place}": value for aspect, value in LAYER.items()}
    after = {f"after {aspect} of {place}": value for aspect, value in LAYER.items()}
    before |= {"before process_group of the call": GIVEN, "before names of the tree": "a, a.b"}
    after |= {"after ending of the call": "returned", "after names of the tree": "a, a.b"}
    before |= {f"before kind of {place}": kind, f"before class of {place}": "BatchNorm2d"}
    after |= {f"after class of {place}": "Synchronized", f"after process_group of {place}": GIVEN}
    if kind != "plain":
        after[f"after class of {place}"] = "BatchNorm2d"
        before[f"before process_group of {place}"] = after[f"after process_group of {place}"] = (
            "dist.group.WORLD"
        )
    for name, value in changes.items():
        after[f"after {name} of {place}"] = value
    return before | after


def judged(scene, facts):
    one = scene(batches=(2, 2), probe="conversion")
    for rank in range(2):
        one.change(rank, facts=facts)
    return one.verdicts().get("conversion")


def test_a_right_conversion_holds_over_all_facts(scene):
    verdict = judged(scene, told())
    assert verdict.outcome.value == "HOLDS"
    assert verdict.elements == 2 * len(told())


@pytest.mark.parametrize("aspect", [name for name in LAYER if name not in ("kind",)])
def test_each_aspect_must_be_as_before(scene, aspect):
    verdict = judged(scene, told(**{aspect: "something else"}))
    assert verdict.outcome.value == "VIOLATED"
    (found,) = verdict.discrepancies
    assert found.quantity == f"{aspect} of plain"
    assert found.observed == "something else"
    assert found.expected == LAYER[aspect]
    assert found.mismatched_ranks == (0, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"class": "BatchNorm2d"},
        {"process_group": "None (the default group)"},
        {"class": "missing"},
        {"qconfig": "not set"},
    ],
)
def test_a_layer_must_be_replaced_with_the_group_and_attributes(scene, changes):
    facts = told(**changes)
    if changes.get("class") == "missing":
        facts = {name: value for name, value in facts.items() if name != "after eps of plain"}
    assert judged(scene, facts).outcome.value == "VIOLATED"


@pytest.mark.parametrize("changes", [{"eps": "not set"}, {"kind": "synchronized"}])
def test_what_another_class_need_not_have_is_not_compared(scene, changes):
    assert judged(scene, told(**changes)).outcome.value == "HOLDS"


def test_a_layer_without_a_process_group_to_look_at_is_not_asked_for_it(scene):
    facts = {name: value for name, value in told().items() if name != "after process_group of plain"}
    assert judged(scene, facts).outcome.value == "HOLDS"


@pytest.mark.parametrize(
    ("kind", "changes", "violated"),
    [
        ("instance", {"class": "Synchronized"}, True),
        ("synchronized", {"class": "Synchronized"}, False),
        ("synchronized", {"process_group": "the given one"}, True),
        ("active", {"class": "Synchronized", "process_group": "the given one"}, False),
        ("active", {"running_mean": "None"}, True),
    ],
)
def test_other_layers_keep_what_is_theirs(scene, kind, changes, violated):
    verdict = judged(scene, told(place="other", kind=kind, **changes))
    assert (verdict.outcome.value == "VIOLATED") is violated


def test_lost_behaviour_is_a_violation(scene):
    facts = told() | {
        "before sign of active": "nowhere negative",
        "after sign of active": "negative somewhere",
    }
    assert [found.quantity for found in judged(scene, facts).discrepancies] == ["sign of active"]


def test_a_conversion_that_raises_is_one_discrepancy(scene):
    facts = {name: value for name, value in told().items() if name.startswith("before ")}
    verdict = judged(scene, facts | {"after ending of the call": "TypeError: no."})
    (found,) = verdict.discrepancies
    assert (found.quantity, found.observed) == ("ending of the call", "TypeError: no.")


def test_names_of_the_tree_must_be_kept(scene):
    verdict = judged(scene, told() | {"after names of the tree": "a.b, a"})
    assert [found.quantity for found in verdict.discrepancies] == ["names of the tree"]


def test_who_offers_no_conversion_is_not_asked(scene):
    assert judged(scene, {}) is None
    one = scene(batches=(2, 2))
    one.change(0, facts=told(eps="0.1"))
    assert "conversion" not in one.verdicts()


def test_one_rank_that_converts_otherwise_is_named(scene):
    one = scene(batches=(2, 2), probe="conversion")
    one.change(0, facts=told())
    one.change(1, facts=told(training="True"))
    (found,) = one.verdicts()["conversion"].discrepancies
    assert found.mismatched_ranks == (1,)

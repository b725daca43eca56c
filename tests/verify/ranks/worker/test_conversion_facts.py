"""What a rank tells of a conversion, without a process group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from properties.probe import TREE_ITEMS
from verify.ranks.worker.conversion_facts import facts
from verify.ranks.worker.loader import converter
from verify.subjects.aggregated import Aggregated
from verify.subjects.converting import Converter

PLAIN, NESTED, SHARED, TIED, ACTIVE = 0, 8, 9, 10, 13


class Inheriting(nn.SyncBatchNorm):
    """Its converter is torch's, which makes layers of torch."""


class Raising(Aggregated):
    """Cannot convert."""

    @classmethod
    def convert_sync_batchnorm(cls, module, process_group=None):
        raise SystemExit(3)


class Nothing(Aggregated):
    """Returns no module."""

    @classmethod
    def convert_sync_batchnorm(cls, module, process_group=None):
        return None


class Elsewhere(Aggregated):
    """Loses a layer."""

    @classmethod
    def convert_sync_batchnorm(cls, module, process_group=None):
        return nn.Sequential()


def test_a_converter_counts_unless_it_is_inherited_from_torch():
    assert converter(Aggregated) is not None
    assert converter(nn.BatchNorm1d) is None
    assert converter(Inheriting) is None
    assert facts(PLAIN, Inheriting, group=None) == {}


@pytest.mark.parametrize("seed", range(TREE_ITEMS))
def test_a_low_seed_is_a_tree_of_one_item_that_is_looked_at_twice(seed):
    told = facts(seed, Aggregated, group=None)
    items = {name.rpartition(" of ")[2].partition(".")[0] for name in told} - {"the call", "the tree"}
    assert len(items) == 1
    before = {name.removeprefix("before ") for name in told if name.startswith("before ")}
    after = {name.removeprefix("after ") for name in told if name.startswith("after ")}
    assert {name for name in before if " of the call" not in name} <= after
    assert told["after ending of the call"] == "returned"


def test_seeds_make_different_trees_of_many_items():
    trees = {facts(seed, Aggregated, group=None)["before names of the tree"] for seed in range(100, 110)}
    assert len(trees) == 10
    assert all(text.count(",") > 3 for text in trees)


def test_the_same_seed_tells_the_same():
    assert facts(12345, Aggregated, group=None) == facts(12345, Aggregated, group=None)


def test_objects_are_named_by_where_they_were_first_seen():
    told = facts(SHARED, Aggregated, group=None)
    assert told["before module of shared.b"] == "shared.a"
    assert told["after weight of shared.b"] == "weight of shared.a"
    told = facts(TIED, Aggregated, group=None)
    assert told["after module of tied.right.0"] == "tied.left.0"


def test_behaviour_shows_as_the_sign_of_an_evaluation():
    told = facts(ACTIVE, Aggregated, group=None)
    assert told["before sign of active"] == told["after sign of active"] == "nowhere negative"


@pytest.mark.parametrize(
    ("subject", "ending"), [(Raising, "SystemExit"), (Nothing, "an object of type NoneType")]
)
def test_what_leaves_the_subject_is_told(subject, ending):
    told = facts(PLAIN, subject, group=None)
    assert ending in told["after ending of the call"]
    assert "before class of plain" in told


def test_a_lost_layer_is_told_of_no_more():
    told = facts(NESTED, Elsewhere, group=None)
    assert "before class of nested.1.0" in told
    assert "after class of nested.1.0" not in told


def test_a_converted_layer_shares_what_the_old_one_has():
    layer = nn.BatchNorm2d(3, momentum=None, eps=0.5)
    calls = []
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    tree = nn.Sequential(nn.Sequential(layer), layer)
    converted = Converter(Aggregated, None).convert(tree)
    new = converted[1]
    assert converted is tree
    assert type(new) is Aggregated
    assert converted[0][0] is new
    assert new.weight is layer.weight
    assert new.running_var is layer.running_var
    assert (new.momentum, new.eps) == (None, 0.5)
    new(torch.arange(12.0).reshape(4, 3, 1, 1))
    assert calls == [1]
    assert int(layer.num_batches_tracked) == 1
    handle.remove()
    new(torch.arange(12.0).reshape(4, 3, 1, 1))
    assert calls == [1]

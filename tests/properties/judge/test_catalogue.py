"""The catalogue and the judge."""

import subprocess
import sys

import msgspec
import pytest

from properties.domain import Contract, DomainError
from properties.judge.catalogue import PROPERTIES, judge, select
from properties.observation import Observation

IDS = [
    "forward",
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "grad_input",
    "grad_weight",
    "grad_bias",
    "agreement",
    "dtype_and_layout",
    "purity",
    "identity",
    "eval_is_local",
    "collectives",
    "nonfinite",
    "refusal",
    "ending",
    "repeatable",
    "scaling",
    "conversion",
]


def test_ids_are_stable_and_in_order():
    assert list(PROPERTIES) == IDS
    assert all(name == one.id and one.violation for name, one in PROPERTIES.items())


def test_only_the_named_properties_are_judged_in_the_catalogues_order(scene):
    one = scene(batches=(2, 2))
    observation = Observation(ranks=tuple(one.ranks))
    found = judge(one.case, observation, one.expected, Contract(), only=["ending", "forward", "scaling"])
    assert [verdict.property for verdict in found] == ["forward", "ending"]


@pytest.mark.parametrize("names", [["forwards"], []])
def test_unknown_properties_raise_with_the_valid_ones(names):
    with pytest.raises(DomainError, match="grad_input"):
        select(names)


def test_inputs_drawn_otherwise_are_our_own_failure(scene):
    one = scene(batches=(2, 2))
    one.spoil(0, "output.0", (0, 0), 99.0)
    one.change(1, digest="other")
    verdicts = one.verdicts()
    assert {verdict.outcome.value for verdict in verdicts.values()} == {"UNDECIDED"}
    assert all("rank 1" in verdict.reason for verdict in verdicts.values())
    one.change(1, digest="")  # A rank that died before it drew.
    assert "forward" in one.violated()


def test_an_observation_of_other_ranks_is_our_own_failure(scene):
    one = scene(batches=(2, 2))
    one.ranks = one.ranks[:1]
    assert set(one.outcomes().values()) == {"UNDECIDED"}
    one.ranks = [msgspec.structs.replace(one.ranks[0], rank=1)]
    assert set(one.outcomes().values()) == {"UNDECIDED"}


def test_the_judge_imports_neither_torch_nor_jax_nor_hypothesis():
    heavy = "print([m for m in ('torch', 'jax', 'hypothesis') if m in sys.modules])"
    code = "import sys, properties.judge.catalogue; " + heavy
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    strict = code.replace("properties.judge.catalogue", "properties.generation.strategies")
    done = subprocess.run([sys.executable, "-c", strict], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['hypothesis']"

"""Loading: which constructor keywords a factory is said to accept."""

from __future__ import annotations

import pytest
from torch import nn

from verify.ranks.worker.loader import KEYWORDS, accepted


class Inner(nn.BatchNorm2d):
    """Takes what torch's batch norm takes."""


class Narrow(nn.Module):
    """Takes eps and affine."""

    def __init__(self, num_features, eps=1e-5, affine=True):
        super().__init__()


class HandsOn(nn.BatchNorm2d):
    """Hands everything on, positional arguments included."""

    def __init__(self, *args, process_group=None, **kwargs):
        super().__init__(*args, **kwargs)


class Indexed:
    """A factory that is no function and no class."""

    def __call__(self, num_features, **kwargs):
        return Narrow(num_features, **kwargs)


def makes_inner(num_features, **kwargs):
    return Inner(num_features, **kwargs)


def fixes_eps(num_features, **kwargs):
    return Inner(num_features, eps=1e-3, **kwargs)


def takes_anything(num_features, **kwargs):
    return Narrow(num_features)


def has_a_fault_of_its_own(num_features, **kwargs):
    raise TypeError("Expected an even number of features")


def calls_something_else_wrongly(num_features, **kwargs):
    return sorted([], reversed=True)


def leaves(num_features, **kwargs):
    raise SystemExit


TORCHS = ("eps", "momentum", "affine", "track_running_stats", "device", "dtype", "bias")


@pytest.mark.parametrize(
    ("factory", "keywords"),
    [
        (Narrow, ("eps", "affine")),
        (makes_inner, TORCHS),
        (HandsOn, (*TORCHS[:4], "process_group", *TORCHS[4:])),
        (Indexed(), ("eps", "affine")),
        (fixes_eps, tuple(name for name in TORCHS if name != "eps")),
        (takes_anything, KEYWORDS),
        (has_a_fault_of_its_own, KEYWORDS),
        (calls_something_else_wrongly, KEYWORDS),
        (leaves, KEYWORDS),
    ],
    ids=lambda value: getattr(value, "__name__", "") if not isinstance(value, tuple) else "",
)
def test_keywords_that_a_factory_hands_on_are_those_that_are_taken_in_the_end(factory, keywords):
    assert accepted(factory) == keywords


def test_a_factory_that_hands_keywords_on_is_called_once_more_for_each_that_is_not_taken():
    calls = []

    def factory(num_features, **kwargs):
        calls.append(set(kwargs))
        return Narrow(num_features, **kwargs)

    assert accepted(factory) == ("eps", "affine")
    assert len(calls) == 1 + len(KEYWORDS) - 2
    assert calls[0] == set(KEYWORDS)

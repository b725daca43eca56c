"""Known discrepancies: reading, validation, facts, and the ranks and channels an entry covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from properties.case import Case, Step
from verify.known.case_facts import FACTS
from verify.known.entries import Entry, KnownError, extent, load, parse

ENTRY = {
    "id": '"one"',
    "reason": '"Why."',
    "case": "'{\"batches\":[2,0]}'",
    "when": '[{fact = "empty_ranks", at_least = 1}]',
    "properties": '["forward"]',
    "mechanism": '"half-sums"',
}


def text(**changes: str) -> str:
    lines = [f"{key} = {value}" for key, value in {**ENTRY, **changes}.items() if value]
    return "\n".join(["[[known]]", *lines])


def entry(when: str, case: str = "{}") -> Entry:
    return parse(text(when=when, case=f"'{case}'"))[0]


def test_an_entry_is_read() -> None:
    (found,) = parse(text(quantities='["output"]', endings='["died"]', link='"https://example.org"'))
    assert found.case == Case(batches=(2, 0))
    assert (found.quantities, found.endings, found.link) == (("output",), ("died",), "https://example.org")


@pytest.mark.parametrize(
    ("changes", "device", "release", "concerned"),
    [
        ({}, "cuda", "2.13.0", True),
        ({"devices": '["cpu"]'}, "cuda", "2.13.0", False),
        ({"devices": '["cpu", "cuda"]'}, "cuda", "2.13.0", True),
        ({"torch_below": '"2.13"'}, "cpu", "2.13.0+cpu", False),
        ({"torch_below": '"2.13"'}, "cpu", "2.12.1+cu130", True),
        ({"torch_below": '"2.13"'}, "cpu", "2.9.0a0", True),
        ({"torch_below": '"2.13"'}, "cpu", "3.0.0", False),
    ],
)
def test_an_entry_concerns_a_device_and_versions_of_torch(changes, device, release, *, concerned) -> None:
    (found,) = parse(text(**changes))
    assert found.concerns(device=device, torch=release) == concerned


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "known.toml").write_text(text(), encoding="utf-8")
    assert load(tmp_path / "known.toml")[0].id == "one"


def test_an_empty_file_has_no_entries() -> None:
    assert parse("") == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reason": ""}, "missing"),
        ({"extra": "1"}, "keys among"),
        ({"id": "3"}, "a text as id"),
        ({"case": "'{\"batches\":[]}'"}, "1 to 64 ranks"),
        ({"case": "'nonsense'"}, "case as JSON"),
        ({"when": "[]"}, "clauses"),
        ({"when": '[{fact = "nope", is = 1}]'}, "a fact among"),
        ({"when": '[{fact = "eps", equals = 1}]'}, "an operator among"),
        ({"when": '[{fact = "eps", at_least = "much"}]'}, "a number"),
        ({"when": '[{fact = "eps", at_least = true}]'}, "a number"),
        ({"when": '[{fact = "input_dtype", in = "float16"}]'}, "a list"),
        ({"when": '[{fact = "input_dtype", at_least = 1}]'}, "can be compared"),
        ({"when": '[{fact = "channel_min_local_var", is = 0}]'}, "for a channel"),
        ({"when": '[{fact = "empty_ranks", above = 1}]'}, "meets its own clauses"),
        ({"properties": "[]"}, "at least one property"),
        ({"properties": '"forward"'}, "a list of texts"),
        ({"endings": '["exploded"]'}, "endings among"),
        ({"mechanism": ""}, "a mechanism, or no property beside"),
        ({"mechanism": '"magic"'}, "a mechanism among"),
        ({"devices": '["tpu"]'}, "devices among cpu, cuda"),
        ({"torch_below": '"two"'}, "a version of torch"),
        ({"torch_below": "2.13"}, "a version of torch"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_line(changes: dict[str, str], expected: str) -> None:
    with pytest.raises(KnownError, match=expected) as caught:
        parse(text(**changes), source="mine.toml")
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["[[known]", "other = 1", "known = 3"])
def test_what_is_no_list_of_entries_is_refused(wrong: str) -> None:
    with pytest.raises(KnownError):
        parse(wrong)


def test_an_id_must_be_unique() -> None:
    with pytest.raises(KnownError, match="each id once"):
        parse(text() + "\n" + text())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"gone\.toml"):
        load(tmp_path / "gone.toml")


def test_a_fact_of_a_group_covers_the_ranks_of_that_group_only() -> None:
    case = Case(batches=(2, 0, 3, 4), groups=((0, 2), (1, 3)))
    covered = extent(parse(text())[0], case)
    assert sorted(covered) == [(1, 0), (3, 0)]
    assert all(channels.all() for channels in covered.values())


def test_a_fact_of_a_channel_covers_that_channel_only() -> None:
    case = Case(batches=(1, 3), channels=2, values="tiny_spread", eps=1.0, seed=5)
    with_one = Case(batches=(2, 3), channels=3, seed=5)
    found = entry('[{fact = "channel_min_local_var", at_most = 0}]', '{"batches":[1,3]}')
    assert extent(found, case)[0, 0].all()  # one value a channel has no variance
    assert not extent(found, with_one)


def test_a_fact_of_a_step_covers_that_step_only() -> None:
    case = Case(batches=(2, 2), steps=(Step(mode="eval"), Step(), Step(mode="eval")))
    found = entry('[{fact = "eval", is = true}]', '{"steps":[{"mode":"eval"}]}')
    assert sorted(extent(found, case)) == [(0, 0), (0, 2), (1, 0), (1, 2)]


@pytest.mark.parametrize("name", ["ending", "refusal", "collectives", "conversion"])
def test_what_is_no_number_may_be_excused_without_a_mechanism(name: str) -> None:
    assert parse(text(mechanism="", properties=f'["{name}"]'))[0].mechanism == ""


def test_a_channels_variance_is_that_of_its_values() -> None:
    from properties.values.elements import tensors

    case = Case(batches=(4, 3), channels=5, eps=0.5, seed=9)
    parts = [tensors(case, rank, step=0)[0][:, :, 0] for rank in (0, 1)]
    local = np.minimum(parts[0].var(axis=0), parts[1].var(axis=0))
    both = np.concatenate(parts).var(axis=0)
    read = {name: FACTS[name].read(case, (0, 1), 0) for name in FACTS if name.startswith("channel_")}
    np.testing.assert_allclose(read["channel_min_local_var"], local, rtol=1e-12)
    np.testing.assert_allclose(read["channel_min_local_var_over_eps"], local / 0.5, rtol=1e-12)
    np.testing.assert_allclose(read["channel_global_var"], both, rtol=1e-12)


def test_a_constant_channel_has_exactly_no_variance() -> None:
    case = Case(batches=(7, 9), channels=4, values="constant", seed=3)
    assert (FACTS["channel_global_var"].read(case, (0, 1), 0) == 0).all()


def test_without_a_training_step_a_channel_has_no_variance_to_speak_of() -> None:
    case = Case(batches=(2, 2), steps=(Step(mode="eval"),))
    assert np.isnan(FACTS["channel_min_local_var"].read(case, (0, 1), 0)).all()


@pytest.mark.parametrize(
    ("when", "case", "holds"),
    [
        ('{fact = "input_dtype", is = "float16"}', Case(dtype="float16"), True),
        ('{fact = "input_dtype", in = ["float16"]}', Case(), False),
        ('{fact = "momentum_none", is = true}', Case(momentum=None), True),
        ('{fact = "momentum", at_most = 1}', Case(momentum=None), False),
        ('{fact = "total_count", is = 1}', Case(batches=(1, 0)), True),
        ('{fact = "eps", below = 1e-3}', Case(eps=0.0), True),
        ('{fact = "eps", above = 1e-3}', Case(eps=1e-3), False),
        ('{fact = "ragged_grad", is = true}', Case(input_grad=(True, False)), True),
        ('{fact = "recompute", is = true}', Case(steps=(Step(recompute=True),)), True),
        ('{fact = "max_count", at_least = 3}', Case(batches=(1, 3)), True),
        ('{fact = "group_size", at_least = 2}', Case(groups=((0,), (1,))), False),
    ],
)
def test_facts_and_operators(when: str, case: Case, *, holds: bool) -> None:
    from verify.known.entries import Clause, tomllib

    clause = tomllib.loads(f"when = [{when}]")["when"][0]
    name = next(key for key in clause if key != "fact")
    value = tuple(clause[name]) if name == "in" else clause[name]
    assert (
        any(Clause(clause["fact"], name, value).holds(case, group, 0) for group in case.process_groups)
        == holds
    )


def test_every_fact_is_described_and_can_be_read() -> None:
    case = Case(batches=(2, 3), channels=2)
    for name, fact in FACTS.items():
        assert fact.text, name
        value = fact.read(case, (0, 1), 0)
        assert np.shape(value) == ((2,) if fact.scope == "channel" else ())
